"""Where does a training lose time to pages: memory that is freed, returned to the system, and faulted in anew?

training  each training in fresh processes, one per way of clearing gradients and of getting memory, interleaved: time
          by phase, page faults, time of the system, size. Everything is trained by our Adam; losses and parameters
          are compared with those of the first way.
calls     brk, mmap, munmap and madvise of an iteration, counted by strace, where there is one.
step      the step alone, on ordinary memory and on huge pages, interleaved in one process.

Memory is a matter of the whole process, so a server per environment, which has imported everything and used no thread,
forks each training (`worker.py`). Beside the workloads of `loop` there are two with large tensors and the shapes of
ResNet-50 and GPT-2 with a backward that writes all gradients and computes nothing. It takes less than ten minutes.

Output: tables; each result is kept by itself in `pages.json`, with the machine it was measured on. Exit status 1 if a
way has changed a result.
"""

import argparse
import os
import re
import shutil
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory.models import TRAININGS
from benchmarks.memory.step import MADVISE, ROUNDS, huge_page_steps
from benchmarks.memory.worker import MARK, Server, Way
from benchmarks.shared import options
from benchmarks.shared.measure import interleaved, ratio, spread
from benchmarks.shared.report import Record, Table, correct_text, is_wrong, keep, make_progress, number, spread_text
from benchmarks.shared.training import PHASES

TINIEST = ("tiny-mlp", "digits-mlp")  # none of their blocks is so large that it would be given back
MOST_ROUNDS = {"gpt2": 2}  # it takes longest, and differs least from round to round
THP = Path("/sys/kernel/mm/transparent_hugepage")
CALLS = ("brk", "mmap", "munmap", "madvise")
ITERATIONS = 10  # over which they are counted
BASELINE, KEEP = "set_to_none=True", "keep_freed_memory"
TUNABLE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # glibc 2.35: malloc asks for huge pages
WAYS = {
    BASELINE: Way(),
    "set_to_none=False": Way("fill"),
    "to_zero": Way("to_zero"),
    KEEP: Way(keep=True),
    "keep, to_zero": Way("to_zero", keep=True),
    "keep, M_TOP_PAD": Way(keep=True, pad=256 << 20),
    "hugetlb": Way(environment=TUNABLE),
    "keep, hugetlb": Way(keep=True, environment=TUNABLE),
    "torch's THP": Way(environment={"THP_MEM_ALLOC_ENABLE": "1"}),  # torch asks, for blocks from 2 MiB on
}


def way_result(outcomes: Sequence[Record], baseline: Sequence[Record]) -> dict[str, Any]:
    """One way as a JSON object: times in µs, page faults and µs of the system per iteration, ratios within rounds."""
    iterations = [outcome["iteration"] for outcome in outcomes]
    return {
        "phases": {phase: spread([o["phases"][phase] for o in outcomes]) for phase in PHASES},
        "iteration": spread(iterations),
        "ratio": ratio(iterations, [outcome["iteration"] for outcome in baseline]),
        "faults": {phase: statistics.median(o["faults"][phase] for o in outcomes) for phase in PHASES},
        "system": spread([outcome["system"] for outcome in outcomes]),
        "peak_mib": max(outcome["peak_mib"] for outcome in outcomes),
        "kept": all(outcome["kept"] for outcome in outcomes),
        "correct": all(o[key] == baseline[0][key] for o, key in product(outcomes, ("losses", "checksum"))),
    }


def between_marks(lines: Iterable[str]) -> Counter[str]:
    """Calls of each kind between the first and the last mark in a log of strace, over all threads."""
    names = [found[1] for line in lines if (found := re.match(r"(?:\d+ +)?(\w+)\(", line))]
    marks = [i for i, name in enumerate(names) if name == MARK]
    return Counter(names[marks[0] + 1 : marks[-1]]) if len(marks) > 1 else Counter()


def calls_per_iteration(training: str, way: Way, threads: int) -> dict[str, float]:
    """The system's calls of one iteration, after some that are not counted."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "calls"
        command = ("strace", "-f", "--seccomp-bpf", "-qq", "-e", f"trace={','.join((*CALLS, MARK))}", "-o", str(log))
        with Server(way.environment, command) as server:
            server.ask(training, way, seconds=0, threads=threads, iterations=ITERATIONS)
        found = between_marks(log.read_text().splitlines())
    return {name: found[name] / ITERATIONS for name in CALLS}


def train(args: argparse.Namespace, progress: Any) -> Iterator[tuple[str, Record, Table]]:
    """Trains in all ways; a server per environment stands ready throughout."""
    names = [name for name in WAYS if name in (BASELINE, *(args.way or WAYS))]
    rounds = {name: min(args.rounds, MOST_ROUNDS.get(name, args.rounds)) for name in args.training}
    bar = progress.add_task("", total=len(names) * sum(rounds.values()))
    with ExitStack() as stack:
        environments = {str(WAYS[name].environment): WAYS[name].environment for name in names}
        servers = {key: stack.enter_context(Server(each)) for key, each in environments.items()}
        for training in args.training:
            progress.update(bar, description=training)
            outcomes: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
            for name in interleaved(names, rounds[training]):
                ask = servers[str(WAYS[name].environment)].ask
                threads = torch.get_num_threads()
                outcomes[name].append(ask(training, WAYS[name], seconds=args.seconds, threads=threads))
                progress.advance(bar)
            ways = {name: way_result(found, outcomes[BASELINE]) for name, found in outcomes.items()}
            result = {"training": training, "losses": outcomes[BASELINE][0]["losses"], "ways": ways}
            yield training, result, training_table(result)


def training_table(result: Record) -> Table:
    """Times by phase, faults and size of every way."""
    rows = (
        (
            name,
            *(number(way["phases"][phase]["median"]) for phase in PHASES),
            number(way["iteration"]["median"]),
            spread_text(way["ratio"]),
            number(sum(way["faults"].values())),
            number(way["system"]["median"]),
            number(way["peak_mib"]),
            correct_text(way["correct"]),
        )
        for name, way in result["ways"].items()
    )
    header = ("", *PHASES, "iteration", "/ first", "faults", "system", "MiB", "same")
    return Table(header, rows, f"{result['training']}, Adam: µs and page faults per iteration")


def count(args: argparse.Namespace, progress: Any) -> Iterator[tuple[str, Record, Table]]:
    """Counts system calls, where there is strace."""
    for training in args.training if shutil.which("strace") else ():
        threads = torch.get_num_threads()
        ways = {name: {"calls": calls_per_iteration(training, WAYS[name], threads)} for name in (BASELINE, KEEP)}
        rows = ((name, *(f"{way['calls'][call]:.2f}" for call in CALLS)) for name, way in ways.items())
        yield training, {"ways": ways}, Table(("", *CALLS), rows, f"{training}: system calls per iteration")


def step(args: argparse.Namespace, progress: Any) -> Iterator[tuple[str, Record, Table]]:
    """Times the step on huge pages, where the system can be asked for them."""
    for model, rule in product(ROUNDS, ("adam", "sgd")) if MADVISE is not None else ():
        result = huge_page_steps(model, rule, 3 if args.quick else ROUNDS[model])
        rows = (
            (name, spread_text(way["time"]), spread_text(way["ratio"]), correct_text(way["correct"]))
            for name, way in result["ways"].items()
        )
        title = f"{model}, {rule}: the step on huge pages ({result['huge_mib']:,.0f} MiB of them)"
        yield f"{model}, {rule}", result, Table(("", "time, µs", "/ ordinary", "same bits"), rows, title)


PARTS: Mapping[str, Any] = {"training": train, "calls": count, "step": step}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts; the exit status is 1 if a way has changed a result."""
    lines = (f"  {name:12} {w.summary}" for name, w in TRAININGS.items())
    parser = options.Parser(__doc__, "\n".join(("trainings:", *lines)), rounds=(3, 1))
    parser.add_names("--part", PARTS, "what is measured (default: all)")
    parser.add_names("--training", TRAININGS, "what is trained (default: all but the tiniest)")
    parser.add_names("--way", WAYS, "which ways beside the first (default: all)")
    parser.add_argument("--seconds", type=float, default=0.3, help="for which each training is timed")
    args = parser.parse(arguments)
    args.seconds = 0.05 if args.quick else args.seconds
    args.training = args.training or [name for name in TRAININGS if name not in TINIEST]
    console, machine = options.begin(args)
    pages = {name: (THP / name).read_text().strip() for name in ("enabled", "defrag") if (THP / name).exists()}
    machine["pages"] = pages | {"libc": os.confstr("CS_GNU_LIBC_VERSION")}
    settings = {key: getattr(args, key) for key in ("rounds", "seconds", "quick")}
    good = True
    with make_progress(console) as progress:
        for part in args.part or PARTS:
            for name, result, table in PARTS[part](args, progress):
                good &= not is_wrong(result)
                kept = {"machine": machine, "settings": settings, **result}
                keep(args.output / "pages.json", part, name, kept)
                console.print(table.rich())
    return int(not good)
