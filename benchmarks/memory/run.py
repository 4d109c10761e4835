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
from rich.console import Console

from benchmarks.memory.models import TRAININGS
from benchmarks.memory.step import MADVISE, ROUNDS, huge_page_steps
from benchmarks.memory.worker import MARK, Way, server
from benchmarks.shared import options
from benchmarks.shared.files import Record, save_part
from benchmarks.shared.measure import interleaved, ratio, spread
from benchmarks.shared.report import Table, correct_text, each, is_wrong, number
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
    "hugetlb": Way(environment=TUNABLE),
    "keep, hugetlb": Way(keep=True, environment=TUNABLE),
    "torch's THP": Way(environment={"THP_MEM_ALLOC_ENABLE": "1"}),  # torch asks, for blocks from 2 MiB on
}
Results = Iterator[tuple[str, Record, Table]]  # their names, and how they are shown
COLUMNS = {phase: f"phases.{phase}.median" for phase in PHASES} | {
    "iteration": "iteration.median",
    "/ first": "ratio",
    "faults": lambda way: number(sum(way["faults"].values())),
    "system": "system.median",
    "MiB": "peak_mib",
    "same": lambda way: correct_text(way["correct"]),
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


def train(args: argparse.Namespace, console: Console) -> Results:
    """Trains in all ways; a server per environment stands ready throughout."""
    names = [name for name in WAYS if name in (BASELINE, *(args.way or WAYS))]
    with ExitStack() as stack:
        environments = {str(WAYS[name].environment): WAYS[name].environment for name in names}
        asks = {key: stack.enter_context(server(environment)) for key, environment in environments.items()}
        for training in each(console, args.training, str):
            outcomes: dict[str, list[Record]] = {name: [] for name in names}
            for name in interleaved(names, min(args.rounds, MOST_ROUNDS.get(training, args.rounds))):
                ask, threads = asks[str(WAYS[name].environment)], torch.get_num_threads()
                outcomes[name].append(ask(training, WAYS[name], seconds=args.seconds, threads=threads))
            ways = {name: way_result(found, outcomes[BASELINE]) for name, found in outcomes.items()}
            result = {"training": training, "losses": outcomes[BASELINE][0]["losses"], "ways": ways}
            title = f"{training}, Adam: µs and page faults per iteration"
            yield training, result, Table.of(COLUMNS, ways, title)


def count(args: argparse.Namespace, console: Console) -> Results:
    """Counts the system calls of an iteration, after some that are not counted, where there is strace."""
    for training in args.training if shutil.which("strace") else ():
        ways = {}
        for name in (BASELINE, KEEP):
            with tempfile.TemporaryDirectory() as folder:
                log, traced = Path(folder) / "calls", ",".join((*CALLS, MARK))
                command = ("strace", "-f", "--seccomp-bpf", "-qq", "-e", f"trace={traced}", "-o", str(log))
                with server(WAYS[name].environment, command) as ask:
                    ask(training, WAYS[name], seconds=0, threads=torch.get_num_threads(), iterations=ITERATIONS)
                found = between_marks(log.read_text().splitlines())
            ways[name] = {"calls": {call: found[call] / ITERATIONS for call in CALLS}}
        columns = {call: f"calls.{call}" for call in CALLS}
        yield training, {"ways": ways}, Table.of(columns, ways, f"{training}: system calls per iteration")


def step(args: argparse.Namespace, console: Console) -> Results:
    """Times the step on huge pages, where the system can be asked for them."""
    columns = {"time, µs": "time", "/ ordinary": "ratio", "same bits": lambda way: correct_text(way["correct"])}
    for model, rule in product(ROUNDS, ("adam", "sgd")) if MADVISE is not None else ():
        result = huge_page_steps(model, rule, 3 if args.quick else ROUNDS[model])
        title = f"{model}, {rule}: the step on huge pages ({result['huge_mib']:,.0f} MiB of them)"
        yield f"{model}, {rule}", result, Table.of(columns, result["ways"], title)


PARTS: Mapping[str, Any] = {"training": train, "calls": count, "step": step}


def main(arguments: Sequence[str] | None = None) -> int:
    lines = (f"  {name:12} {w.summary}" for name, w in TRAININGS.items())
    parser = options.Parser(__doc__, "\n".join(("trainings:", *lines)), rounds=(3, 1))
    parser.add_names("--part", PARTS, "what is measured (default: all)")
    parser.add_names("--training", TRAININGS, "what is trained (default: all but the tiniest)")
    parser.add_names("--way", WAYS, "which ways beside the first (default: all)")
    parser.add_limit("--seconds", 0.3, 0.05, "for which each training is timed")
    args = parser.parse(arguments)
    args.training = args.training or [name for name in TRAININGS if name not in TINIEST]
    console, machine = options.begin(args)
    pages = {name: (THP / name).read_text().strip() for name in ("enabled", "defrag") if (THP / name).exists()}
    machine["pages"] = pages | {"libc": os.confstr("CS_GNU_LIBC_VERSION")}
    settings = {key: getattr(args, key) for key in ("rounds", "seconds", "quick")}
    good = True
    for part in args.part or PARTS:
        for name, result, table in PARTS[part](args, console):
            good &= not is_wrong(result)
            save_part(args.output / "pages.json", part, name, {"machine": machine, "settings": settings, **result})
            console.print(table.rich())
    return int(not good)
