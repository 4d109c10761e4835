"""Where does a training lose time to pages: memory that is freed, returned to the system, and faulted in anew?

Each training runs in fresh processes, one per way of clearing gradients and of getting memory, interleaved: time, page
faults and size. Everything is trained by our Adam; losses and parameters are compared with those of the first way.
Beside the workloads of `loop` there are two with large tensors and the shapes of ResNet-50 and GPT-2 with a backward
that writes all gradients and computes nothing. Where there is strace, it counts the system calls of an iteration.

Output: tables for each training, `pages.json`; exit status 1 if a way has changed a result.
"""

import argparse
import shutil
import statistics
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch

from benchmarks.memory.models import TRAININGS
from benchmarks.memory.worker import CALLS, Way, ask, system_calls
from benchmarks.shared.files import Record
from benchmarks.shared.measure import in_rounds, ratio, spread
from benchmarks.shared.options import question
from benchmarks.shared.report import Table, each, result_text

SECONDS, QUICK_SECONDS = 0.3, 0.05  # for which each training is timed
TRACED_S = 5.0  # for which its system calls are counted, much slower
BASELINE, KEEP = "set_to_none=True", "keep_freed_memory"
WAYS = {
    BASELINE: Way(),
    "set_to_none=False": Way("fill"),
    "to_zero": Way("to_zero"),
    KEEP: Way(keep=True),
    # glibc 2.35: malloc asks for huge pages
    "hugetlb": Way(environment={"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}),
    "torch's THP": Way(environment={"THP_MEM_ALLOC_ENABLE": "1"}),  # torch asks, for blocks from 2 MiB on
}
COLUMNS = {"µs": "iteration", "/ first": "ratio", "faults": "faults", "MiB": "peak_mib", "result": result_text}


def way_result(outcomes: Sequence[Record], baseline: Sequence[Record]) -> dict[str, Any]:
    """One way as a JSON object: times in µs and page faults per iteration, ratios within rounds."""
    iterations = [outcome["iteration"] for outcome in outcomes]
    return {
        "iteration": spread(iterations),
        "ratio": ratio(iterations, [outcome["iteration"] for outcome in baseline]),
        "faults": statistics.median(outcome["faults"] for outcome in outcomes),
        "peak_mib": max(outcome["peak_mib"] for outcome in outcomes),
        "kept": all(outcome["kept"] for outcome in outcomes),
        "correct": all(o[key] == baseline[0][key] for o, key in product(outcomes, ("losses", "checksum"))),
    }


def train(training: str, args: argparse.Namespace) -> dict[str, Any]:
    """A training in all ways."""
    how = QUICK_SECONDS if args.quick else SECONDS, torch.get_num_threads()
    outcomes = in_rounds(WAYS, args.rounds, lambda name: ask(training, WAYS[name], *how))
    return {name: way_result(found, outcomes[BASELINE]) for name, found in outcomes.items()}


def count_calls(args: argparse.Namespace) -> dict[str, Any]:
    """The system calls of each training, in two ways; of none where there is no strace."""
    how = QUICK_SECONDS if args.quick else TRACED_S, torch.get_num_threads()
    trainings = each(args.training or list(TRAININGS), str) if shutil.which("strace") else ()
    return {t: {name: system_calls(t, WAYS[name], *how) for name in (BASELINE, KEEP)} for t in trainings}


def run(args: argparse.Namespace) -> Record:
    results = {training: train(training, args) for training in each(args.training or list(TRAININGS), str)}
    return {"results": results, "calls": count_calls(args)}


def tables(record: Record) -> Iterator[Table]:
    for training, ways in record["results"].items():
        yield Table.of(COLUMNS, ways, f"{training}, Adam: an iteration")
    for training, ways in record["calls"].items():
        yield Table.of(dict(zip(CALLS, CALLS, strict=True)), ways, f"{training}, Adam: system calls of an iteration")


main = question(__doc__, "pages", run, tables, {"--training": TRAININGS}, rounds=(3, 1))
