"""The targets of a run on a GPU, and its tables, all from the record that is written as JSON."""

from collections.abc import Iterator
from operator import ge, le
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape

from benchmarks.shared.files import Record
from benchmarks.shared.report import Table, number, result_text
from benchmarks.shared.variants import OURS

LARGE = "gpt2"  # 124 M elements in 148 tensors
FUSED = "torch-fused"
# What is to be reached: a share of the bandwidth of a copy and microseconds of the host, at LARGE; launches; pace.
COPY, HOST, LAUNCHES, PACE = "share of the copy", "host time of a step in µs", "launches per bucket", f"{FUSED} / ours"
BOUNDS = {COPY: (ge, 0.92), HOST: (le, 60.0), LAUNCHES: (le, 1), PACE: (ge, 1)}
SIGNS = {ge: ">=", le: "<="}
STEP = {
    "time, µs": "time",
    "times ours": "ratio",
    "host, µs": "host",
    "kernels, µs": lambda f: f"{number(seen['device_us'])} in {seen['kernels']}" if (seen := f["launches"]) else "-",
    "GB/s": "gb_per_s",
    "of the copy": "copy_share",
    "result": result_text,
}
BITS = {"compared": lambda unit: str(unit.get("compared", "-")), "result": "state", "s": "seconds"}


class Target(NamedTuple):
    """A figure to be reached, and whether it was; `value` and `reached` are None if it was not measured."""

    what: str
    bound: str
    value: float | None
    reached: bool | None

    @classmethod
    def of(cls, kind: str, case: str = "", value: float | None = None) -> "Target":
        compare, bound = BOUNDS[kind]
        what = f"{kind}, {case}" if case else kind
        return cls(what, f"{SIGNS[compare]} {bound:g}", value, None if value is None else compare(value, bound))


def timed(record: Record, kind: str) -> Iterator[tuple[str, Any]]:
    """The measurements of a kind, "step" or "loop", that were made; with their names."""
    for name, unit in record["parts"].get("time", {}).get("units", {}).items():
        if name.startswith(f"{kind} ") and "variants" in unit:
            yield name.removeprefix(f"{kind} ").replace(" ", ", "), unit


def targets(record: Record) -> list[Target]:
    """All targets; those of which nothing was measured are among them, once."""
    found = []
    for name, unit in timed(record, "step"):
        ours = unit["variants"][OURS]
        if unit["model"] == LARGE:
            found.append(Target.of(COPY, name, ours["copy_share"]["median"]))
            found.append(Target.of(HOST, name, ours["host"]["median"]))
        # one group and one dtype: one bucket
        found.append(Target.of(LAUNCHES, name, ours["launches"]["kernels"] if ours["launches"] else None))
        found.append(Target.of(PACE, f"step {name}", unit["variants"][FUSED]["ratio"]["median"]))
    for name, unit in timed(record, "loop"):
        found.append(Target.of(PACE, f"loop {name}", unit["variants"][FUSED]["loop_ratio"]["median"]))
    return found + [Target.of(kind) for kind in BOUNDS if not any(t.what.startswith(kind) for t in found)]


def lines(record: Record, state: str) -> list[str]:
    """One line for everything that has "failed" or was "skipped", in the parts' order."""
    found = []
    for part, of_part in record["parts"].items():
        units = of_part.get("units", {}).items()
        some = [f"{part}: {name}: {unit.get('why', 'wrong')}" for name, unit in units if unit["state"] == state]
        found += some or [f"{part}: {of_part.get('why', state)}"] * (of_part["state"] == state)
    return found


def tables(record: Record) -> Iterator[Table]:
    for name, unit in timed(record, "step"):
        title = f"step: {name}, {unit['tensors']} tensors, {unit['bytes'] / 1e6:,.1f} MB"
        copy = {"launches": None, **unit["copy"]}
        yield Table.of(STEP, {**unit["variants"], "copy": copy}, title, ours=OURS)
    for name, unit in timed(record, "loop"):
        phases = {phase: f"phases.{phase}.median" for phase in unit["variants"][OURS]["phases"]}
        columns = {**phases, "loop": "loop", "times ours": "loop_ratio", "result": result_text}
        yield Table.of(columns, unit["variants"], f"training, µs: {name}", ours=OURS)
    if "bits" in record["parts"]:
        yield Table.of(BITS, record["parts"]["bits"].get("units", {}), "bits of the CPU kernels")
    if "time" in record["parts"]:
        of_cpu = " (A REHEARSAL ON THE CPU: they say nothing of a GPU)" * record["settings"]["rehearsal"]
        words = {True: "reached", False: "missed", None: "not measured"}
        found = targets(record)
        rows = ((t.what, t.bound, "-" if t.value is None else number(t.value), words[t.reached]) for t in found)
        yield Table(("", "target", "measured", ""), rows, f"targets{of_cpu}")


def show(record: Record, console: Console) -> None:
    for table in tables(record):
        console.print(table.rich())
    console.print(*(f"[dim]left out: {escape(line)}[/]" for line in lines(record, "skipped")), sep="\n")
    console.print(*(f"[bold red]FAILED[/] {escape(line)}" for line in lines(record, "failed")), sep="\n")
