"""How results are shown and kept: text, tables, progress, claims, JSON."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.shared.measure import Spread, ratio

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
QUICK_RESULTS = ROOT / "build" / "bench"  # which git ignores: what is published is no quick run's
MINIMUM_WIDTH = 148

Times = Mapping[str, Sequence[float]]  # by variant, one figure per round
Case = tuple[str, str]  # workload or model, and rule


def make_console() -> Console:
    """A console wide enough for the tables even where the output is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, MINIMUM_WIDTH))


def make_progress(console: Console) -> Progress:
    """A progress bar with the time left."""
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def number(value: float) -> str:
    """A figure to about four digits."""
    return f"{value:,.{0 if value >= 1000 else 1 if value >= 100 else 2}f}"


def spread_text(spread: Spread) -> str:
    """The median, and half the interquartile range as a share of it."""
    return f"{number(spread.median)} [dim]±{(spread.high - spread.low) / (2 * spread.median):.0%}[/]"


def correct_text(correct: bool) -> str:
    """The word in the column "correct"."""
    return "[green]correct[/]" if correct else "[bold red]WRONG[/]"


def make_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose first column is text and whose others are figures."""
    table = Table(title=f"[bold]{title}[/]", box=SIMPLE_HEAD, title_justify="left", title_style="")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def machine_line(info: Mapping[str, Any]) -> str:
    """The machine in one line."""
    build = info["fusedoptim"]
    kernels = build["instruction_set"] if build["native"] else "NO KERNELS, the reference in Python"
    threads = f"{info['threads']} thread{'s' * (info['threads'] > 1)}"
    return (
        f"{info.get('gpu', info['cpu'])}, {threads}, torch {info['torch']}, fusedoptim {build['version']} ({kernels})"
    )


@dataclass(frozen=True)
class Claim:
    """A statement of the documentation about a ratio of times.

    Attributes:
        case: The workload or model, and the rule.
        numerator: The variant whose time is above the line.
        denominator: The variant whose time is below it.
        target: What the ratio must reach, or must not exceed with `at_most`.
    """

    case: Case
    numerator: str
    denominator: str
    target: float
    at_most: bool = False

    def outcome(self, times: Times) -> dict[str, Any]:
        """The claim with the ratio reached and whether it holds."""
        reached = ratio(times[self.numerator], times[self.denominator])
        holds = reached.median <= self.target if self.at_most else reached.median >= self.target
        return {**asdict(self), "reached": asdict(reached), "holds": holds}


def check_claims(claims: Iterable[Claim], measured: Mapping[Case, Times]) -> list[dict[str, Any]]:
    """The outcome of those claims for which everything was measured."""
    return [
        claim.outcome(measured[claim.case])
        for claim in claims
        if {claim.numerator, claim.denominator} <= set(measured.get(claim.case, ()))
    ]


def claims_table(outcomes: Sequence[Mapping[str, Any]]) -> Table:
    """Target and reached for each claim."""
    rows = [
        (
            " / ".join(claim["case"]),
            f"{claim['numerator']} / {claim['denominator']}",
            f"{'<=' if claim['at_most'] else '>='} {claim['target']}",
            spread_text(Spread(**claim["reached"])),
            "[green]reached[/]" if claim["holds"] else "[yellow]missed[/]",
        )
        for claim in outcomes
    ]
    return make_table("claims", ("case", "ratio of times", "target", "measured", ""), rows)


def save_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a record, creating the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
