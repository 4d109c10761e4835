"""The targets of a run on a GPU, and its tables, all from the record that is written as JSON."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.shared.measure import Spread
from benchmarks.shared.report import correct_text, make_table, number, spread_text
from benchmarks.shared.variants import OURS

COPY_SHARE = 0.92  # of the bandwidth of a copy, at LARGE
LARGE = "gpt2"  # 124 M elements in 148 tensors
HOST_US = 60.0  # per step at LARGE
FUSED = "torch-fused"

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """What was to be reached, and whether it was.

    Attributes:
        what: The figure.
        bound: The target as text.
        value: What was measured; None if it was not.
        reached: None if it was not measured.
    """

    what: str
    bound: str
    value: float | None
    reached: bool | None

    @classmethod
    def at_least(cls, what: str, bound: float, value: float | None) -> "Target":
        """A figure that is to be large."""
        return cls(what, f">= {bound:g}", value, None if value is None else value >= bound)

    @classmethod
    def at_most(cls, what: str, bound: float, value: float | None) -> "Target":
        """A figure that is to be small."""
        return cls(what, f"<= {bound:g}", value, None if value is None else value <= bound)


def timed(record: Record, kind: str) -> Iterator[tuple[str, Record]]:
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
            found.append(Target.at_least(f"share of the copy, {name}", COPY_SHARE, ours["copy_share"]["median"]))
            found.append(Target.at_most(f"host time of a step in µs, {name}", HOST_US, ours["host"]["median"]))
        # one group and one dtype: one bucket
        count = ours["launches"]["kernels"] if ours["launches"] else None
        found.append(Target.at_most(f"launches per bucket, {name}", 1, count))
        found.append(
            Target.at_least(f"time of {FUSED} / ours, step {name}", 1, unit["variants"][FUSED]["ratio"]["median"])
        )
    for name, unit in timed(record, "loop"):
        ratio = unit["variants"][FUSED]["loop_ratio"]["median"]
        found.append(Target.at_least(f"time of {FUSED} / ours, loop {name}", 1, ratio))
    for what, bound in (("share of the copy", f">= {COPY_SHARE:g}"), ("host time of a step in µs", f"<= {HOST_US:g}"),
                        ("launches per bucket", "<= 1"), (f"time of {FUSED} / ours", ">= 1")):  # fmt: skip
        if not any(target.what.startswith(what) for target in found):
            found.append(Target(what, bound, None, None))
    return found


def targets_table(found: list[Target], title: str = "targets") -> Table:
    """Target beside measurement."""
    words = {True: "[green]reached[/]", False: "[yellow]missed[/]", None: "not measured"}
    rows = ((t.what, t.bound, "-" if t.value is None else number(t.value), words[t.reached]) for t in found)
    return make_table(title, ("", "target", "measured", ""), rows)


def step_table(name: str, unit: Record) -> Table:
    """Times, bandwidth, launches and correctness of every variant; the copy in the last row."""
    rows = []
    for variant, figures in unit["variants"].items():
        seen = figures["launches"]
        rows.append(
            (
                f"[bold]{variant}[/]" if variant == OURS else variant,
                spread_text(Spread(**figures["time"])),
                spread_text(Spread(**figures["ratio"])),
                spread_text(Spread(**figures["host"])),
                f"{number(seen['device_us'])} in {seen['kernels']}" if seen else "-",
                number(figures["gb_per_s"]),
                spread_text(Spread(**figures["copy_share"])),
                correct_text(figures["correct"]) if "correct" in figures else "",
            )
        )
    copy = unit["copy"]
    rows.append(("copy", spread_text(Spread(**copy["time"])), "", "", "", number(copy["gb_per_s"]), "", ""))
    title = f"step: {name}, {unit['tensors']} tensors, {unit['bytes'] / 1e6:,.1f} MB"
    columns = ("", "time, µs", "times ours", "host, µs", "kernels, µs", "GB/s", "of the copy", "result")
    return make_table(title, columns, rows)


def graph_table(name: str, unit: Record) -> Table:
    """Capture and replay."""
    rows = (
        (variant, number(f["capture"]), spread_text(Spread(**f["replay"])), spread_text(Spread(**f["ratio"])))
        for variant, f in unit["variants"].items()
    )
    return make_table(f"graph: {name}", ("", "capture, µs", "replay, µs", "times ours"), rows)


def loop_table(name: str, unit: Record) -> Table:
    """Whole iterations and their phases."""
    phases = list(unit["variants"][OURS]["phases"])
    rows = (
        (
            f"[bold]{variant}[/]" if variant == OURS else variant,
            *(number(figures["phases"][phase]["median"]) for phase in phases),
            spread_text(Spread(**figures["loop"])),
            spread_text(Spread(**figures["loop_ratio"])),
            correct_text(figures["correct"]),
        )
        for variant, figures in unit["variants"].items()
    )
    return make_table(f"training, µs: {name}", ("", *phases, "loop", "times ours", "result"), rows)


def failures(record: Record) -> list[str]:
    """One line for everything that failed, in the parts' order."""
    lines = []
    for part, found in record["parts"].items():
        for name, unit in found.get("units", {}).items():
            if unit["state"] == "failed":
                lines.append(f"{part}: {name}: {unit.get('why', 'wrong')}")
        if found["state"] == "failed" and not any(line.startswith(f"{part}:") for line in lines):
            lines.append(f"{part}: {found.get('why', 'failed')}")
    return lines


def left_out(record: Record) -> list[str]:
    """One line for everything that was not run."""
    lines = []
    for part, found in record["parts"].items():
        if found["state"] == "skipped":
            lines.append(f"{part}: {found['why']}")
        units = found.get("units", {}).items()
        lines += [f"{part}: {name}: {unit['why']}" for name, unit in units if unit["state"] == "skipped"]
    return lines


def show(record: Record, console: Console) -> None:
    """Prints everything: tables, what was left out, what failed, the targets."""
    for kind, table in (("step", step_table), ("graph", graph_table), ("loop", loop_table)):
        for name, unit in timed(record, kind):
            console.print(table(name, unit))
    if "bits" in record["parts"]:
        units = record["parts"]["bits"].get("units", {})
        rows = (
            (name, str(u.get("compared", "-")), u["state"], f"{u.get('seconds', 0):.1f}") for name, u in units.items()
        )
        console.print(make_table("bits of the CPU kernels", ("", "compared", "result", "s"), rows))
    if "time" in record["parts"]:
        of_cpu = " (A REHEARSAL ON THE CPU: they say nothing of a GPU)" * record["settings"]["rehearsal"]
        console.print(targets_table(targets(record), f"targets{of_cpu}"))
    console.print(*(f"[dim]left out: {escape(line)}[/]" for line in left_out(record)), sep="\n")
    console.print(*(f"[bold red]FAILED[/] {escape(line)}" for line in failures(record)), sep="\n")
