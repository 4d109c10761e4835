"""What do the kernels take for an element in the second-level cache, by rule, dtype and instruction set?

A figure is the slope between steps over one tensor of 48 KiB and of 160 KiB, in which all that a call costs beside its
elements cancels out; both are taken within a round, after a step that is not timed, and it is the median over rounds.
With its gradient and state the smaller is more than a first-level cache holds, the larger less than 1 MiB. One thread;
the baseline kernels, which have no fma instruction, only where there are no others.

Output: a table of nanoseconds, `kernel_costs.json`.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import product

import torch

from benchmarks.shared import variants
from benchmarks.shared.arena import Arena
from benchmarks.shared.files import Record
from benchmarks.shared.measure import Call, in_rounds, spread, time_call
from benchmarks.shared.options import question
from benchmarks.shared.report import Table
from benchmarks.shared.shapes import Model
from benchmarks.shared.variants import LABELS, OURS
from fusedoptim import native

SMALL, LARGE = 48 << 10, 160 << 10  # bytes of the parameter
REPEATS = 20
DTYPES = variants.DTYPES | {"fp64": torch.float64}


def prepare(rule: str, dtype: str, size: int) -> Call:
    """The step of one tensor of `size` bytes, whose state is there and whose gradient stays."""
    return Arena(Model(((size // DTYPES[dtype].itemsize,),), 1), rule, DTYPES[dtype]).step(OURS)


def time_warm(step: Call) -> float:
    """Microseconds of a step whose tensors are in the cache already."""
    step()
    return time_call(step, REPEATS)


def measure(sets: Sequence[str], rounds: int) -> dict[tuple[str, str, str], list[float]]:
    """Nanoseconds an element, one figure per round, by rule, dtype and instruction set."""
    steps = {key: prepare(*key) for key in product(LABELS, DTYPES, (SMALL, LARGE))}

    def time_element(key: tuple[str, str, str]) -> float:
        rule, dtype, name = key
        native.set_instruction_set(name)
        small, large = (time_warm(steps[rule, dtype, size]) for size in (SMALL, LARGE))
        return 1e3 * (large - small) * DTYPES[dtype].itemsize / (LARGE - SMALL)

    before = native.build_info()["instruction_set"]
    try:
        return in_rounds(product(LABELS, DTYPES, sets), rounds, time_element)
    finally:
        native.set_instruction_set(before)


def run(args: argparse.Namespace) -> Record:
    sets = [name for name in native.build_info()["instruction_sets_supported"] if name != "baseline"] or ["baseline"]
    results = [
        {"rule": rule, "dtype": dtype, "instruction_set": name, "ns": spread(figures)}
        for (rule, dtype, name), figures in measure(sets, args.rounds).items()
    ]
    return {"instruction_sets": sets, "results": results}


def tables(record: Record) -> Iterator[Table]:
    cells = {
        (f"{LABELS[r['rule']]}, {r['instruction_set']}", r["dtype"]): f"{r['ns']['median']:.3f}"
        for r in record["results"]
    }
    yield Table.pivot("ns an element", cells, "in the second-level cache")


main = question(__doc__, "kernel_costs", run, tables, rounds=(50, 3), threads=1)
