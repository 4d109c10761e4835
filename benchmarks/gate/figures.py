"""The gate's figures: kept in the tree, compared with what was measured, and what may differ how far.

Instruction counts repeat to 0.5 % where little is counted and to 0.3 % elsewhere: what differs is where objects lie in
memory, and with it how often a hash table is probed. A module built with CUDA kernels takes up to 1.9 % more
instructions of its own than one without. Hence the tolerance of 3 %.
"""

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

import fusedoptim
from benchmarks.gate.cases import shapes_of
from benchmarks.gate.counts import Count
from benchmarks.gate.kernels import Loop

FIGURES = Path(__file__).resolve().parent.parent / "perf_gate.json"
COUNTS, LOOPS = "instructions per call: total, module", "loops: instructions, packed, other, stack, calls"
TOLERANCE = 0.03
LOOSE = 0.5  # between compilers, and for totals between versions of Python and torch


def key() -> dict[str, str]:
    """What the figures depend on beside the code; another processor changes nothing that is counted."""
    compiler = str(fusedoptim.build_info()["compiler"])
    return {
        "compiler": compiler.partition(".")[0],  # the major version
        "python": platform.python_version().rpartition(".")[0],
        "torch": torch.__version__,
        "libc": " ".join(platform.libc_ver()),
    }


@dataclass(frozen=True)
class Figures:
    key: Mapping[str, str]  # as `key` gives it
    counts: Mapping[str, Count] | None  # by path, model, rule, instruction set and call; None if they were left out
    loops: Mapping[str, Loop | None]  # by instruction set, rule, storage type, variant, and whether it moves averages

    @classmethod
    def load(cls, path: Path = FIGURES) -> "Figures":
        record = json.loads(path.read_text())
        counts = {name: Count(*values) for name, values in record[COUNTS].items()}
        loops = {
            n: Loop(count, frozenset(packed.split()), *rest) for n, (count, packed, *rest) in record[LOOPS].items()
        }
        return cls(record["key"], counts, loops)

    def save(self, path: Path = FIGURES) -> None:
        """Writes the figures, one measurement a line, so that a change of them can be read."""
        counts = {name: list(count) for name, count in (self.counts or {}).items()}
        loops: dict[str, Any] = {}
        for name, loop in self.loops.items():
            if loop is None:
                raise RuntimeError(f"{name} has no loop: not figures to keep")
            loops[name] = [loop.instructions, " ".join(sorted(loop.packed)), loop.other, loop.stack, loop.calls]
        parts = []
        for title, entries in {"key": self.key, COUNTS: counts, LOOPS: loops}.items():
            lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in entries.items())
            parts.append(f" {json.dumps(title)}: {{\n{lines}\n }}")
        path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def per_tensor_and_element(counts: Mapping[str, Count]) -> dict[str, tuple[float, float]]:
    """What one more tensor of 64 elements costs, and one more element, in instructions, for each step and zero_grad."""
    few, many, large = ([prod(shape) for shape in shapes_of(m)] for m in ("4x64", "400x64", "tutorial-mlp"))
    result = {}
    for name, count in counts.items():
        path, model, *rest = name.split()
        if model == "4x64":
            more, larger = (counts[" ".join((path, m, *rest))].total for m in ("400x64", "tutorial-mlp"))
            per_tensor = (more - count.total) / (len(many) - len(few))
            result[" ".join((path, *rest))] = per_tensor, (larger - count.total) / (sum(large) - sum(few))
    return result


def rise(what: str, before: float, now: float, tolerance: float) -> Iterator[str]:
    """Says what rose, and by how much, if it is more than the tolerance allows."""
    if now > before * (1 + tolerance):
        share = f" ({now / before - 1:+.1%})" if before else ""
        yield f"{what} rose from {before:,.10g} to {now:,.10g}{share}, allowed are {tolerance:+.0%}"


def judge_counts(before: Figures, now: Figures) -> Iterator[str]:
    """What rose in the counts.

    Totals are held to the tolerance where compiler, Python, torch and libc are those of the figures, the module's own
    instructions where the compiler is. Elsewhere what one more tensor and one more element cost is held to `LOOSE`.
    """
    old, new = before.counts or {}, now.counts or {}
    same_compiler = before.key["compiler"] == now.key["compiler"]
    for name, count in old.items():
        if name not in new:
            yield f"{name}: was not counted"
            continue
        if before.key == now.key:
            yield from rise(f"{name}: instructions per call", count.total, new[name].total, TOLERANCE)
        if same_compiler:
            yield from rise(f"{name}: the module's own instructions", count.module, new[name].module, TOLERANCE)
    if before.key != now.key and set(old) <= set(new):
        growth = per_tensor_and_element(new)
        for name, figures in per_tensor_and_element(old).items():
            for what, was, is_now in zip(("tensor", "element"), figures, growth[name], strict=True):
                yield from rise(f"{name}: instructions per {what}", max(was, 1), is_now, LOOSE)


def judge_loops(before: Figures, now: Figures) -> Iterator[str]:
    """What got worse in the kernels' loops. Kernels without figures are held to packed arithmetic and nothing else."""
    same_compiler = before.key["compiler"] == now.key["compiler"]
    for name in before.loops.keys() - now.loops.keys():
        yield f"{name}: there is no such kernel"
    for name, loop in now.loops.items():
        old = before.loops.get(name)
        if loop is None:
            yield f"{name}: no loop computes anything"
            continue
        if old is None:
            if not loop.packed or (loop.other and not name.startswith("baseline")):
                yield f"{name}: its loop is not packed ({loop.other} instructions on scalars or narrow registers)"
            continue
        if missing := old.packed - loop.packed:
            yield f"{name}: its loop has no full-width {', '.join(sorted(missing))} any more"
        more = 0 if same_compiler else 4
        yield from rise(f"{name}: arithmetic on scalars or narrow registers in the loop", old.other, loop.other, 0)
        yield from rise(f"{name}: calls in the loop", old.calls, loop.calls, 0)
        yield from rise(f"{name}: vectors on the stack in the loop", old.stack + more, loop.stack, 0)
        tolerance = TOLERANCE if same_compiler else LOOSE
        yield from rise(f"{name}: instructions in the loop", old.instructions, loop.instructions, tolerance)
