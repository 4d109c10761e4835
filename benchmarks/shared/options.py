"""Command-line options that the benchmarks share, and how each begins."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.shared.measure import machine_info
from benchmarks.shared.report import QUICK_RESULTS, RESULTS, ROOT, machine_line, make_console


def positive(text: str) -> int:
    """An integer of at least one."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def device(text: str) -> torch.device:
    """A device that we can measure on."""
    kind, _, index = text.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:<number>, got {text!r}")
    return torch.device(text)


def _shown(folder: Path) -> str:
    return str(folder.relative_to(ROOT)) if folder.is_relative_to(ROOT) else str(folder)


class _Quick(argparse.Action):
    """Sets the flag, and keeps the results away from the published ones unless a folder is named."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        namespace.quick = True
        if namespace.output is RESULTS:
            namespace.output = QUICK_RESULTS


def make_parser(description: str | None, epilog: str = "") -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=positive, help="how often each variant is measured, interleaved")
    parser.add_argument("--threads", type=positive, help="torch's threads (default: torch's choice)")
    parser.add_argument(
        "--quick", action=_Quick, nargs=0, default=False, help="everything, but short: no figures to quote"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=RESULTS,
        help=f"folder for the results (default: {_shown(RESULTS)}, with --quick {_shown(QUICK_RESULTS)})",
    )
    return parser


def add_names(parser: argparse.ArgumentParser, flag: str, names: Sequence[str], text: str) -> None:
    """Adds an option that takes some of `names`; without it, None."""
    parser.add_argument(flag, nargs="+", choices=names, metavar="NAME", help=f"{text}: {', '.join(names)}")


def begin(args: argparse.Namespace, device: torch.device | str = "cpu") -> tuple[Console, dict[str, Any]]:
    """Sets the threads that were asked for, and says what is measured on and where the results go.

    Returns:
        The console, and the machine for the results.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    console = make_console()
    machine = machine_info(torch.device(device))
    console.print(machine_line(machine), "[dim]±: half the interquartile range[/]")
    console.print(f"results go to {_shown(args.output)}\n")
    return console, machine
