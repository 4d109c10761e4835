"""The targets of a run on a GPU, and its tables, all from the record that is written as JSON."""

from collections.abc import Iterator
from dataclasses import dataclass
from operator import ge, le
from typing import Any

from rich.console import Console
from rich.markup import escape

from benchmarks.shared.report import Record, Table, bold, number, result_text, spread_text
from benchmarks.shared.variants import OURS

LARGE = "gpt2"  # 124 M elements in 148 tensors
FUSED = "torch-fused"
# What is to be reached: a share of the bandwidth of a copy and microseconds of the host, at LARGE; launches; pace.
COPY, HOST, LAUNCHES, PACE = "share of the copy", "host time of a step in µs", "launches per bucket", f"{FUSED} / ours"
BOUNDS = {COPY: (ge, 0.92), HOST: (le, 60.0), LAUNCHES: (le, 1), PACE: (ge, 1)}
SIGNS = {ge: ">=", le: "<="}


@dataclass(frozen=True)
class Target:
    """What was to be reached, and whether it was; `value` and `reached` are None if it was not measured."""

    what: str
    bound: str
    value: float | None
    reached: bool | None

    @classmethod
    def of(cls, kind: str, case: str = "", value: float | None = None) -> "Target":
        """A figure of a kind of `BOUNDS`, in a case."""
        compare, bound = BOUNDS[kind]
        what = f"{kind}, {case}" if case else kind
        return cls(what, f"{SIGNS[compare]} {bound:g}", value, None if value is None else compare(value, bound))


def timed(record: Record, kind: str) -> Iterator[tuple[str, Any]]:
    """The measurements of a kind, "step", "graph" or "loop", that were made; with their names."""
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


def step_table(name: str, unit: Record) -> Table:
    """Times, bandwidth, launches and correctness of every variant; the copy in the last row."""
    rows = [
        (
            bold(variant, variant == OURS),
            *(spread_text(figures[key]) for key in ("time", "ratio", "host")),
            f"{number(seen['device_us'])} in {seen['kernels']}" if (seen := figures["launches"]) else "-",
            number(figures["gb_per_s"]),
            spread_text(figures["copy_share"]),
            result_text(figures),
        )
        for variant, figures in unit["variants"].items()
    ]
    rows.append(("copy", spread_text(unit["copy"]["time"]), "", "", "", number(unit["copy"]["gb_per_s"]), "", ""))
    header = ("", "time, µs", "times ours", "host, µs", "kernels, µs", "GB/s", "of the copy", "result")
    return Table(header, rows, f"step: {name}, {unit['tensors']} tensors, {unit['bytes'] / 1e6:,.1f} MB")


def graph_table(name: str, unit: Record) -> Table:
    """Capture and replay."""
    rows = (
        (variant, number(f["capture"]), spread_text(f["replay"]), spread_text(f["ratio"]))
        for variant, f in unit["variants"].items()
    )
    return Table(("", "capture, µs", "replay, µs", "times ours"), rows, f"graph: {name}")


def loop_table(name: str, unit: Record) -> Table:
    """Whole iterations and their phases."""
    phases = list(unit["variants"][OURS]["phases"])
    rows = (
        (
            bold(variant, variant == OURS),
            *(number(figures["phases"][phase]["median"]) for phase in phases),
            *(spread_text(figures[key]) for key in ("loop", "loop_ratio")),
            result_text(figures),
        )
        for variant, figures in unit["variants"].items()
    )
    return Table(("", *phases, "loop", "times ours", "result"), rows, f"training, µs: {name}")


def failures(record: Record) -> list[str]:
    """One line for everything that failed, in the parts' order."""
    lines = []
    for part, found in record["parts"].items():
        units = found.get("units", {}).items()
        failed = [f"{part}: {name}: {unit.get('why', 'wrong')}" for name, unit in units if unit["state"] == "failed"]
        lines += failed or [f"{part}: {found.get('why', 'failed')}"] * (found["state"] == "failed")
    return lines


def left_out(record: Record) -> list[str]:
    """One line for everything that was not run."""
    lines = []
    for part, found in record["parts"].items():
        lines += [f"{part}: {found['why']}"] if found["state"] == "skipped" else []
        units = found.get("units", {}).items()
        lines += [f"{part}: {name}: {unit['why']}" for name, unit in units if unit["state"] == "skipped"]
    return lines


def show(record: Record, console: Console) -> None:
    """Prints everything: tables, what was left out, what failed, the targets."""
    for kind, table in (("step", step_table), ("graph", graph_table), ("loop", loop_table)):
        for name, unit in timed(record, kind):
            console.print(table(name, unit).rich())
    if "bits" in record["parts"]:
        units = record["parts"]["bits"].get("units", {})
        rows = (
            (name, str(u.get("compared", "-")), u["state"], f"{u.get('seconds', 0):.1f}") for name, u in units.items()
        )
        console.print(Table(("", "compared", "result", "s"), rows, "bits of the CPU kernels").rich())
    if "time" in record["parts"]:
        of_cpu = " (A REHEARSAL ON THE CPU: they say nothing of a GPU)" * record["settings"]["rehearsal"]
        words = {True: "reached", False: "missed", None: "not measured"}
        found = targets(record)
        rows = ((t.what, t.bound, "-" if t.value is None else number(t.value), words[t.reached]) for t in found)
        console.print(Table(("", "target", "measured", ""), rows, f"targets{of_cpu}").rich())
    console.print(*(f"[dim]left out: {escape(line)}[/]" for line in left_out(record)), sep="\n")
    console.print(*(f"[bold red]FAILED[/] {escape(line)}" for line in failures(record)), sep="\n")
