"""Command-line options that the benchmarks share, and how each begins."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from measure import machine_info
from report import RESULTS, machine_line, make_console


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


def make_parser(description: str | None, epilog: str = "") -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=positive, help="how often each variant is measured, interleaved")
    parser.add_argument("--threads", type=positive, help="torch's threads (default: torch's choice)")
    parser.add_argument("--quick", action="store_true", help="everything, but short: no figures to quote")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    return parser


def add_names(parser: argparse.ArgumentParser, flag: str, names: Sequence[str], text: str) -> None:
    """Adds an option that takes some of `names`; without it, None."""
    parser.add_argument(flag, nargs="+", choices=names, metavar="NAME", help=f"{text}: {', '.join(names)}")


def begin(args: argparse.Namespace, device: torch.device | str = "cpu") -> tuple[Console, dict[str, Any]]:
    """Sets the threads that were asked for and says what is measured on.

    Returns:
        The console, and the machine for the results.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    console = make_console()
    machine = machine_info(torch.device(device))
    console.print(machine_line(machine), "[dim]±: half the interquartile range[/]\n")
    return console, machine
