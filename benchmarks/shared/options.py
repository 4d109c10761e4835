"""Command-line options that the questions share, and how each begins and ends."""

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.shared.measure import machine_info
from benchmarks.shared.report import (
    QUICK_RESULTS,
    RESULTS,
    ROOT,
    Record,
    Table,
    is_wrong,
    machine_line,
    make_console,
    save_json,
)


def positive(text: str) -> int:
    """An integer of at least one."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def seconds(text: str) -> float:
    """A time that is more than nothing."""
    if not (value := float(text)) > 0 or math.isinf(value):
        raise argparse.ArgumentTypeError(f"must be positive and finite, got {text}")
    return value


def shown(folder: Path) -> str:
    """A path as short as it may be."""
    return str(folder.relative_to(ROOT)) if folder.is_relative_to(ROOT) else str(folder)


class Parser(argparse.ArgumentParser):
    """The options that every question has.

    Args:
        doc: Of the module that answers it.
        epilog: Stands below the options.
        rounds: How many by default, and with --quick.
        threads: torch's by default; torch's own choice if None.
    """

    def __init__(
        self, doc: str | None, epilog: str = "", rounds: tuple[int | None, int | None] = (None, None), **defaults: Any
    ) -> None:
        super().__init__(description=doc, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.rounds = rounds
        self.add_argument("--rounds", type=positive, help="how often each variant is measured, interleaved")
        self.add_argument("--threads", type=positive, help="torch's threads (default: torch's choice)")
        self.add_argument("--quick", action="store_true", help="everything, but short: no figures to quote")
        folders = f"{shown(RESULTS)}, with --quick {shown(QUICK_RESULTS)}"
        self.add_argument("--output", type=Path, help=f"folder for the results (default: {folders})")
        self.set_defaults(**defaults)

    def add_names(self, flag: str, names: Iterable[str], text: str) -> None:
        """Adds an option that takes some of `names`; without it, None."""
        names = list(names)
        self.add_argument(flag, nargs="+", choices=names, metavar="NAME", help=f"{text}: {', '.join(names)}")

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Reads the command line; a quick run keeps away from the published results unless a folder is named."""
        args = self.parse_args(arguments)
        args.output = args.output or (QUICK_RESULTS if args.quick else RESULTS)
        args.rounds = args.rounds or self.rounds[args.quick]
        return args


def begin(args: argparse.Namespace, device: torch.device | str = "cpu") -> tuple[Console, dict[str, Any]]:
    """Sets the threads that were asked for, and says what is measured on and where the results go.

    Returns:
        The console, and the machine for the results.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    console = make_console()
    machine = machine_info(device)
    console.print(machine_line(machine), "[dim]±: half the interquartile range[/]")
    console.print(f"results go to {shown(args.output)}\n")
    return console, machine


def answer(
    name: str,
    args: argparse.Namespace,
    measure: Callable[[argparse.Namespace], Record],
    tables: Callable[[Record], Iterable[Table]],
) -> int:
    """Measures, keeps the record as `name`.json, and prints its tables; the exit status is 1 if a result was wrong."""
    console, machine = begin(args)
    record = {"machine": machine, **measure(args)}
    save_json(args.output / f"{name}.json", record)
    for table in tables(record):
        console.print(table.rich())
    return int(is_wrong(record))
