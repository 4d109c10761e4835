"""Has a change made steps slower? A gate on performance that does not flake: it reads no clock.

Under callgrind it counts the instructions of steps and of zero_grad; in the built kernels it reads which instructions
their loops are made of. Both are compared with the figures in `perf_gate.json`. Then slowdowns that were planted in
the same run must have been noticed. A change that is meant to cost more brings new figures with it: `--update`.

Output: what rose, if anything, and tables; exit status 1 if something rose, or could not be measured.
"""

import argparse
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import ROOT
from benchmarks.gate.cases import PLANTED
from benchmarks.gate.counts import Count, count_instructions, why_not
from benchmarks.gate.figures import FIGURES, TOLERANCE, Figures, judge_counts, judge_loops, key, per_tensor_and_element
from benchmarks.gate.kernels import REGISTERS, holds, measure_kernels, read_kernels
from benchmarks.shared.report import Table, make_console, number

OBJECTS = ROOT / "build" / f"editable-{sys.implementation.cache_tag}" / "CMakeFiles"


def planted_unnoticed(now: Figures, planted: Mapping[str, Count], console: Console) -> Iterator[str]:
    """Which of the planted slowdowns the comparison does not notice, against the counts of the same run."""
    for label, count in planted.items():
        name, _, what = label.partition(f" {PLANTED}: ")
        assert now.counts is not None
        slower = Figures(now.key, {**now.counts, name: count}, now.loops)
        noticed = [line for line in judge_counts(now, slower) if line.startswith(f"{name}: ")]
        console.print(f"planted, {what}:", noticed[0] if noticed else "[bold red]not noticed[/]", soft_wrap=True)
        if not noticed:
            yield f"planted and not noticed: {what}"


def show(now: Figures, console: Console) -> None:
    if now.counts is not None:
        rows = []
        for name, (per_tensor, per_element) in per_tensor_and_element(now.counts).items():
            path, rest = name.split(" ", 1)
            steps = [now.counts[f"{path} {model} {rest}"] for model in ("4x64", "400x64", "resnet50", "gpt2")]
            rows.append((name, number(per_tensor), number(per_element), *(number(step.total) for step in steps)))
        columns = ("instructions", "per tensor", "per element", "4x64", "400x64", "resnet50 (cut)", "gpt2 (cut)")
        console.print(Table(columns, rows, "instructions per call").rich())
    rows = []
    for instruction_set, register in REGISTERS.items():
        loops = [loop for name, loop in now.loops.items() if loop and name.startswith(instruction_set)]
        counted = len(loops), *(sum(getattr(loop, k) > 0 for loop in loops) for k in ("other", "stack", "calls"))
        rows.append((f"{instruction_set} ({register})", *map(str, counted)))
    header = ("", "kernels", "not all packed", "vectors on the stack", "calls")
    console.print(Table(header, rows, "kernels").rich())


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        return gate(arguments)
    except RuntimeError as error:
        print(f"perf-gate: {error}", file=sys.stderr)
        return 1


def gate(arguments: Sequence[str] | None) -> int:
    """The gate; raises RuntimeError where something cannot be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help=f"write what is measured to {FIGURES.name}")
    text = "read the kernels only: where there is no valgrind"
    parser.add_argument("--without-counts", action="store_true", help=text)
    args = parser.parse_args(arguments)
    console = make_console()
    if not args.without_counts and (missing := why_not()):
        console.print(f"perf-gate: nothing can be counted here: {missing}. --without-counts reads the kernels only.")
        return 1
    kernels = read_kernels(path for name in REGISTERS for path in OBJECTS.glob(f"*_{name}.dir/csrc/cpu/*.o"))
    module = Path(importlib.import_module("fusedoptim._C").__file__ or "").read_bytes()
    failures = [f"{name}: not in the module as built" for name, code in kernels.items() if not holds(module, code)]
    measured = None if args.without_counts else count_instructions()
    counts = None if measured is None else {name: c for name, c in measured.items() if PLANTED not in name}
    now = Figures(key(), counts, measure_kernels(kernels))
    show(now, console)
    if args.update:
        if counts is None or failures:
            console.print("perf-gate: these are no figures to keep:", failures or "the counts are missing")
            return 1
        now.save()
        console.print(f"perf-gate: figures written to {FIGURES.name}; read their difference before you keep it")
        return 0
    before = Figures.load()
    failures += judge_loops(before, now)
    if measured is None:
        console.print("perf-gate: SKIPPED, as asked: instruction counts, and the slowdowns planted in them")
    else:
        if before.key != now.key:
            console.print(f"perf-gate: the figures are of {before.key}, this is {now.key}: totals are not compared")
        failures += judge_counts(before, now)
        failures += planted_unnoticed(now, {n: c for n, c in measured.items() if PLANTED in n}, console)
    old, new = (figures.counts or {} for figures in (before, now))
    same = old.keys() & new.keys() if before.key == now.key else ()
    if faster := sorted(name for name in same if new[name].total < old[name].total * (1 - TOLERANCE)):
        console.print(f"perf-gate: faster than the figures by more than {TOLERANCE:.0%}, so --update them:", faster)
    for failure in failures:
        console.print(f"perf-gate: [bold red]{failure}[/]", soft_wrap=True)
    console.print(
        f"perf-gate: {'FAILED' if failures else 'passed'}: {len(now.loops)} kernels, {len(counts or ())} counts"
    )
    return int(bool(failures))
