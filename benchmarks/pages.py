"""Where a training loses time to pages: memory that is freed, returned to the system, and faulted in anew.

training  each training in fresh processes, one per way of clearing gradients and of getting memory, interleaved: time
          by phase, page faults, time of the system, size. Everything is trained by our Adam; losses and parameters
          are compared with those of the first way.
calls     brk, mmap, munmap and madvise of an iteration, counted by strace, where there is one.
step      the step alone, on ordinary memory and on huge pages, interleaved in one process.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch

from measure import interleaved
from options import add_names, begin, make_parser
from pages_calls import calls_per_iteration
from pages_models import TRAININGS
from pages_step import step_part
from pages_tables import calls_table, summary_table, training_result, training_table
from pages_ways import BASELINE, KEEP, WAYS, with_preloads
from pages_worker import Server
from report import make_progress, save_json

PARTS = ("training", "calls", "step")
THP = Path("/sys/kernel/mm/transparent_hugepage")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    lines = (f"  {name:12} {w.summary}" for name, w in TRAININGS.items())
    parser = make_parser(__doc__, "\n".join(("trainings:", *lines)))
    add_names(parser, "--part", PARTS, "what is measured (default: all)")
    add_names(parser, "--training", list(TRAININGS), "what is trained (default: all)")
    add_names(parser, "--way", list(WAYS), "which ways beside the first (default: all)")
    parser.add_argument("--preload", nargs="+", type=Path, default=[], help="shared libraries of other allocators")
    parser.add_argument("--seconds", type=float, default=0.3, help="of each training, for page faults and for times")
    args = parser.parse_args(arguments)
    args.rounds = args.rounds or (1 if args.quick else 3)
    args.seconds = 0.05 if args.quick else args.seconds
    return args


def pages_info() -> dict[str, Any]:
    """What the system says of pages, and the C library of itself."""
    files = {name: THP / name for name in ("enabled", "defrag")}
    info: dict[str, Any] = {name: path.read_text().strip() for name, path in files.items() if path.exists()}
    names = getattr(os, "confstr_names", {})
    return info | {"libc": os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in names else None}


class Benchmark:
    """The results so far, kept in a file after each of them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.console, machine = begin(args)
        self.ways = with_preloads(args.preload)
        chosen = {BASELINE, *(args.way or WAYS), *(path.name for path in args.preload)}
        self.names = [name for name in self.ways if name in chosen]
        self.trainings = args.training or list(TRAININGS)
        settings = {"rounds": args.rounds, "seconds": args.seconds, "quick": args.quick}
        self.record: dict[str, Any] = {"machine": machine, "pages": pages_info(), "settings": settings}
        self.record["ways"] = {name: asdict(self.ways[name]) for name in self.names}
        self.console.print(f"{self.record['pages']}\n", style="dim", markup=False)

    def keep(self, part: str, results: Sequence[Mapping[str, Any]]) -> None:
        """Writes what there is."""
        self.record[part] = list(results)
        save_json(self.args.output / "pages.json", self.record)

    def training(self) -> None:
        """Trains in all ways; a server per environment stands ready throughout."""
        threads = torch.get_num_threads()
        results: list[dict[str, Any]] = []
        with ExitStack() as stack, make_progress(self.console) as progress:
            bar = progress.add_task("", total=len(self.trainings) * len(self.names) * self.args.rounds)
            environments = {str(self.ways[name].environment): self.ways[name].environment for name in self.names}
            servers = {key: stack.enter_context(Server(each)) for key, each in environments.items()}
            for training in self.trainings:
                progress.update(bar, description=training)
                outcomes: dict[str, list[dict[str, Any]]] = {name: [] for name in self.names}
                for name in interleaved(self.names, self.args.rounds):
                    way = self.ways[name]
                    ask = servers[str(way.environment)].ask
                    outcomes[name].append(ask(training, way, seconds=self.args.seconds, threads=threads))
                    progress.advance(bar)
                results.append(training_result(training, outcomes))
                self.console.print(training_table(results[-1]))
                self.keep("training", results)
        self.console.print(summary_table(results))

    def calls(self) -> None:
        """Counts system calls."""
        results: list[dict[str, Any]] = []
        for training, name in product(self.trainings, (BASELINE, KEEP)):
            calls = calls_per_iteration(
                training, self.ways[name], torch.get_num_threads(), 4 if self.args.quick else 20
            )
            if calls is None:
                self.console.print("system calls are not counted: there is no strace here\n")
                return
            results.append({"training": training, "way": name, "calls": calls})
            self.keep("calls", results)
        self.console.print(calls_table(results))

    def step(self) -> None:
        """Times the step on huge pages."""
        self.keep("step", step_part(self.args, self.console))

    def correct(self) -> bool:
        """Whether every training and every step had the results of the first way."""
        measured = (*self.record.get("training", ()), *self.record.get("step", ()))
        return all(way["correct"] for result in measured for way in result["ways"].values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts; the exit status is 1 if a way has changed a result."""
    args = parse(arguments)
    benchmark = Benchmark(args)
    for part in args.part or PARTS:
        getattr(benchmark, part)()
    benchmark.console.print(f"results written to {args.output / 'pages.json'}")
    return int(not benchmark.correct())


if __name__ == "__main__":
    raise SystemExit(main())
