"""Where a training loses time to pages: memory that is freed, returned to the system, and faulted in anew.

training  each training in fresh processes, one per way of clearing gradients and of getting memory, interleaved: time
          by phase, page faults, time of the system, size. Everything is trained by our Adam; losses and parameters
          are compared with those of the first way.
calls     brk, mmap, munmap and madvise of an iteration, counted by strace, where there is one.
step      the step alone, on ordinary memory and on huge pages, interleaved in one process.

Each result is kept by itself in `pages.json`, with the machine it was measured on.
"""

import argparse
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.busy.run import keep
from benchmarks.memory.calls import calls_per_iteration
from benchmarks.memory.models import TRAININGS
from benchmarks.memory.step import MADVISE, ROUNDS, huge_page_steps
from benchmarks.memory.tables import calls_table, summary_table, training_result, training_table
from benchmarks.memory.ways import BASELINE, KEEP, WAYS, with_preloads
from benchmarks.memory.worker import Server
from benchmarks.shared.measure import interleaved
from benchmarks.shared.options import add_names, begin, make_parser
from benchmarks.shared.report import make_progress

PARTS = ("training", "calls", "step")
TINIEST = ("tiny-mlp", "digits-mlp")  # none of their blocks is so large that it would be given back
MOST_ROUNDS = {"gpt2": 2}  # it takes longest, and differs least from round to round
THP = Path("/sys/kernel/mm/transparent_hugepage")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    lines = (f"  {name:12} {w.summary}" for name, w in TRAININGS.items())
    parser = make_parser(__doc__, "\n".join(("trainings:", *lines)))
    add_names(parser, "--part", PARTS, "what is measured (default: all)")
    add_names(parser, "--training", list(TRAININGS), "what is trained (default: all but the tiniest)")
    add_names(parser, "--way", list(WAYS), "which ways beside the first (default: all)")
    parser.add_argument("--preload", nargs="+", type=Path, default=[], help="shared libraries of other allocators")
    parser.add_argument("--seconds", type=float, default=0.3, help="for which each training is timed")
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
    """The parts, each of whose results is kept in the file as soon as there is one."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.console, self.machine = begin(args)
        self.good = True
        self.ways = with_preloads(args.preload)
        chosen = {BASELINE, *(args.way or WAYS), *(path.name for path in args.preload)}
        self.names = [name for name in self.ways if name in chosen]
        self.trainings = args.training or [name for name in TRAININGS if name not in TINIEST]
        self.machine["pages"] = pages_info()
        self.console.print(f"{self.machine['pages']}\n", style="dim", markup=False)

    def keep(self, part: str, name: str, result: Mapping[str, Any]) -> None:
        """Puts a result into the file; a way of which it says that it was not correct is remembered."""
        settings = {key: getattr(self.args, key) for key in ("rounds", "seconds", "quick")}
        self.good &= all(way.get("correct", True) for way in result["ways"].values())
        keep(self.args.output / "pages.json", part, name, {"machine": self.machine, "settings": settings, **result})

    def training(self) -> None:
        """Trains in all ways; a server per environment stands ready throughout."""
        threads = torch.get_num_threads()
        results: list[dict[str, Any]] = []
        with ExitStack() as stack, make_progress(self.console) as progress:
            rounds = {name: min(self.args.rounds, MOST_ROUNDS.get(name, self.args.rounds)) for name in self.trainings}
            bar = progress.add_task("", total=len(self.names) * sum(rounds.values()))
            environments = {str(self.ways[name].environment): self.ways[name].environment for name in self.names}
            servers = {key: stack.enter_context(Server(each)) for key, each in environments.items()}
            for training in self.trainings:
                progress.update(bar, description=training)
                outcomes: dict[str, list[dict[str, Any]]] = {name: [] for name in self.names}
                for name in interleaved(self.names, rounds[training]):
                    way = self.ways[name]
                    ask = servers[str(way.environment)].ask
                    outcomes[name].append(ask(training, way, seconds=self.args.seconds, threads=threads))
                    progress.advance(bar)
                results.append(training_result(training, outcomes))
                self.console.print(training_table(results[-1]))
                self.keep("training", training, results[-1])
        self.console.print(summary_table(results))

    def calls(self) -> None:
        """Counts system calls."""
        if not shutil.which("strace"):
            self.console.print("system calls are not counted: there is no strace here\n")
            return
        results: dict[str, Any] = {}
        threads = torch.get_num_threads()
        for training in self.trainings:
            ways = {name: {"calls": calls_per_iteration(training, WAYS[name], threads)} for name in (BASELINE, KEEP)}
            results[training] = {"ways": ways}
            self.keep("calls", training, results[training])
        self.console.print(calls_table(results))

    def step(self) -> None:
        """Times the step on huge pages, where the system can be asked for them."""
        for model, rule in product(ROUNDS, ("adam", "sgd")) if MADVISE is not None else ():
            rounds = 3 if self.args.quick else ROUNDS[model]
            self.keep("step", f"{model}, {rule}", huge_page_steps(model, rule, rounds, self.console))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts; the exit status is 1 if a way has changed a result."""
    args = parse(arguments)
    benchmark = Benchmark(args)
    for part in args.part or PARTS:
        getattr(benchmark, part)()
    benchmark.console.print(f"results written to {args.output / 'pages.json'}")
    return int(not benchmark.good)


if __name__ == "__main__":
    raise SystemExit(main())
