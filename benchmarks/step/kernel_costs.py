"""What the kernels take for an element in the second-level cache: nanoseconds by rule, dtype and instruction set.

`--into docs/design.md` writes the table into that page, between the marks of the section "kernel costs".

A figure is the slope between steps over one tensor of 48 KiB and of 160 KiB, in which all that a call costs beside its
elements cancels out; both are taken within a round, after a step that is not timed, and it is the median over rounds.
With its gradient and state the smaller is more than a first-level cache holds, the larger less than 1 MiB. One thread,
whatever `--threads` says; the baseline kernels, which have no fma instruction, only where there are no others.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.limits.cases import LABELS
from benchmarks.publish.markdown import table, write_into
from benchmarks.shared.arena import Arena
from benchmarks.shared.measure import CpuClock, Spread, interleaved, time_call
from benchmarks.shared.options import begin, make_parser
from benchmarks.shared.report import machine_line, make_table, save_json
from benchmarks.shared.shapes import Model
from benchmarks.shared.variants import OURS
from fusedoptim import native

SECTION = "kernel costs"
SMALL, LARGE = 48 << 10, 160 << 10  # bytes of the parameter
REPEATS = 20
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


def prepare(rule: str, dtype: str, size: int) -> Callable[[], object]:
    """The step of one tensor of `size` bytes, whose state is there and whose gradient stays."""
    return Arena(Model(((size // DTYPES[dtype].itemsize,),), 1), rule, DTYPES[dtype]).step(OURS)


def time_warm(step: Callable[[], object], clock: CpuClock) -> float:
    """Microseconds of a step whose tensors are in the cache already."""
    step()
    return time_call(step, clock, REPEATS)


def measure(sets: Sequence[str], rounds: int) -> dict[tuple[str, str, str], list[float]]:
    """Nanoseconds an element, one figure per round, by rule, dtype and instruction set."""
    clock = CpuClock()
    steps = {key: prepare(*key) for key in product(LABELS, DTYPES, (SMALL, LARGE))}
    times: dict[tuple[str, str, str], list[float]] = {key: [] for key in product(LABELS, DTYPES, sets)}
    before = native.build_info()["instruction_set"]
    try:
        for rule, dtype, name in interleaved(list(times), rounds):
            native.set_instruction_set(name)
            small, large = (time_warm(steps[rule, dtype, size], clock) for size in (SMALL, LARGE))
            elements = (LARGE - SMALL) / DTYPES[dtype].itemsize
            times[rule, dtype, name].append(1e3 * (large - small) / elements)
    finally:
        native.set_instruction_set(before)
    return times


def rows(record: Mapping[str, Any]) -> Iterator[list[str]]:
    """Of each rule and instruction set a row."""
    found = {(r["rule"], r["dtype"], r["instruction_set"]): r["ns"]["median"] for r in record["results"]}
    for (rule, label), name in product(LABELS.items(), record["instruction_sets"]):
        yield [f"{label}, {name}", *(f"{found[rule, dtype, name]:.3f}" for dtype in DTYPES)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and keeps."""
    parser = make_parser(__doc__)
    parser.add_argument("--into", type=Path, help="a page to write to")
    args: argparse.Namespace = parser.parse_args(arguments)
    args.threads = 1
    console, machine = begin(args)
    sets = [name for name in native.build_info()["instruction_sets_supported"] if name != "baseline"] or ["baseline"]
    times = measure(sets, args.rounds or (3 if args.quick else 50))
    results = [
        {"rule": rule, "dtype": dtype, "instruction_set": name, "ns": asdict(Spread.of(figures))}
        for (rule, dtype, name), figures in times.items()
    ]
    record = {"machine": machine, "instruction_sets": sets, "results": results}
    save_json(args.output / "kernel_costs.json", record)
    header = ["ns an element", *DTYPES]
    console.print(make_table("in the second-level cache", header, list(rows(record))))
    if args.into:
        about = f"{machine_line(machine)}, {machine['date'][:10]}"
        write_into(args.into, [*table(header, rows(record)), "", about], SECTION)


if __name__ == "__main__":
    main()
