"""Command-line options that the questions share, and how each begins and ends."""

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.shared.files import QUICK_RESULTS, RESULTS, Record, save_json
from benchmarks.shared.measure import machine_info, nothing
from benchmarks.shared.report import Table, is_wrong, machine_line, make_console


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def seconds(text: str) -> float:
    if not (value := float(text)) > 0 or math.isinf(value):
        raise argparse.ArgumentTypeError(f"must be positive and finite, got {text}")
    return value


def shown(folder: Path) -> str:
    return str(folder.relative_to(ROOT)) if folder.is_relative_to(ROOT) else str(folder)


class Parser(argparse.ArgumentParser):
    """The options that every question has.

    Args:
        doc: Of the module that answers it.
        epilog: Stands below the options.
        rounds: How many by default, and with --quick.
        defaults: Of options; `threads` is torch's own choice otherwise.
    """

    def __init__(
        self, doc: str | None, epilog: str = "", rounds: tuple[int | None, int | None] = (None, None), **defaults: Any
    ) -> None:
        super().__init__(description=doc, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.rounds = rounds
        self.limits: dict[str, tuple[float, float]] = {}
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

    def add_limit(self, flag: str, full: float, quick: float, text: str) -> None:
        """Adds an option for a time, whose default is another with --quick."""
        self.add_argument(flag, type=seconds, help=f"{text} (default: {full:g}, with --quick {quick:g})")
        self.limits[flag.removeprefix("--")] = full, quick

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Reads the command line; a quick run keeps away from the published results unless a folder is named."""
        args = self.parse_args(arguments)
        args.output = args.output or (QUICK_RESULTS if args.quick else RESULTS)
        args.rounds = args.rounds or self.rounds[args.quick]
        for name, limits in self.limits.items():
            setattr(args, name, getattr(args, name) or limits[args.quick])
        return args


def begin(args: argparse.Namespace) -> dict[str, Any]:
    """Sets the threads, prints where the results go, and returns the machine and the settings for the results."""
    if args.threads:
        torch.set_num_threads(args.threads)
    machine = machine_info()
    console = make_console()
    console.print(machine_line(machine), "[dim]±: half the interquartile range[/]")
    console.print(f"results go to {shown(args.output)}\n")
    return {"machine": machine, "settings": {key: value for key, value in vars(args).items() if key != "output"}}


def question(
    doc: str | None,
    name: str,
    measure: Callable[[argparse.Namespace], Record | Iterator[Record]],
    tables: Callable[[Record], Iterable[Table]],
    names: Mapping[str, Iterable[str]] = MappingProxyType({}),
    add_options: Callable[[Parser], object] = nothing,
    **options: Any,
) -> Callable[[Sequence[str] | None], int]:
    """The `main` of a question that measures, saves the record as `name`.json, and prints its tables.

    It has the common options, whose defaults are `options`, those that take some of `names`, and what `add_options`
    adds. A record that `measure` yields is saved at once, so that an interrupted run leaves what it has; the last is
    the whole. What it lists as "left_out" is printed. The exit status is 1 if a result was wrong.
    """

    def main(arguments: Sequence[str] | None = None) -> int:
        parser = Parser(doc, **options)
        for flag, some in names.items():
            parser.add_names(flag, some, "which (default: all)")
        add_options(parser)
        args = parser.parse(arguments)
        about, found = begin(args), measure(args)
        record: Record = {}
        for record in [found] if isinstance(found, Mapping) else found:
            save_json(args.output / f"{name}.json", {**about, **record})
        for table in tables({**about, **record}):
            make_console().print(table.rich())
        for what in record.get("left_out", ()):
            make_console().print(f"left out: {what}", markup=False)
        return int(is_wrong(record))

    return main
