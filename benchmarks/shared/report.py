"""How results are shown and kept: text, tables on the console and in Markdown, progress, claims, JSON."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box, progress
from rich import table as rich_table
from rich.console import Console

from benchmarks import ROOT as ROOT
from benchmarks.shared.measure import ratio

RESULTS = ROOT / "benchmarks" / "results"
QUICK_RESULTS = ROOT / "build" / "bench"  # which git ignores: what is published is no quick run's
MINIMUM_WIDTH = 148

Record = Mapping[str, Any]  # of results, as JSON has it
Times = Mapping[str, Sequence[float]]  # by variant, one figure per round
Case = tuple[str, str]  # workload or model, and rule


def make_console() -> Console:
    """A console wide enough for the tables even where the output is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, MINIMUM_WIDTH))


def make_progress(console: Console) -> progress.Progress:
    """A progress bar with the time left."""
    columns = (progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeRemainingColumn())
    return progress.Progress(progress.TextColumn("{task.description:32}"), *columns, console=console, transient=True)


def number(value: float) -> str:
    """A figure to about four digits."""
    return f"{value:,.{0 if value >= 1000 else 1 if value >= 100 else 2}f}"


def spread_text(spread: Record | None) -> str:
    """The median, and half the interquartile range as a share of it."""
    if spread is None:
        return "-"
    return f"{number(spread['median'])} ±{(spread['high'] - spread['low']) / (2 * spread['median']):.0%}"


def correct_text(correct: bool | None) -> str:
    """The word in the column "result"; None is what the time did not last to check."""
    return {True: "correct", False: "WRONG", None: "not checked"}[correct]


def result_text(figures: Record) -> str:
    """Whether it was correct, and in how many rounds it was if the time did not last for all."""
    unfinished = f", unfinished: {figures['unfinished']}" if figures.get("unfinished") else ""
    return correct_text(figures["correct"]) + unfinished if "correct" in figures else unfinished.removeprefix(", ")


def unfinished(rounds: int, planned: int) -> dict[str, str]:
    """What a variant's figures say of rounds that the time did not last for; nothing if it did."""
    return {"unfinished": f"{rounds} of {planned} rounds"} if rounds < planned else {}


def time_and_ratio(figures: Record | None, time: str = "time", ratio: str = "ratio", missing: str = "") -> str:
    """A time in microseconds and how many times ours it is; a wrong result is no result."""
    if figures is None:
        return missing
    if figures.get("correct") is False:
        return "WRONG"
    text = number(figures[time]["median"])
    text = f"{text} ({figures[ratio]['median']:.2f} x)" if ratio in figures else text
    return f"{text}, unfinished: {figures['unfinished']}" if "unfinished" in figures else text


@dataclass(frozen=True)
class Table:
    """Rows whose first column is text and whose others are figures; `**bold**` cells stand out."""

    header: Sequence[str]
    rows: Iterable[Sequence[str]]
    title: str = ""

    def markdown(self) -> Iterator[str]:
        """Its lines."""
        yield f"| {' | '.join(self.header)} |"
        yield f"|---{'|--:' * (len(self.header) - 1)}|"
        for row in self.rows:
            yield f"| {' | '.join(row)} |"

    def rich(self) -> rich_table.Table:
        """For the console; words that say that something is wrong are red there."""
        shown = rich_table.Table(title=f"[bold]{self.title}[/]", box=box.SIMPLE_HEAD, title_justify="left")
        for i, column in enumerate(self.header):
            shown.add_column(column, justify="right" if i else "left")
        for row in self.rows:
            bold = (re.sub(r"\*\*(.+?)\*\*", r"[bold]\1[/]", cell) for cell in row)
            shown.add_row(*(re.sub(r"WRONG|HANGS|missed|unfinished", r"[bold red]\g<0>[/]", cell) for cell in bold))
        return shown


def bold(name: str, is_ours: bool) -> str:
    """A name, which stands out if it is ours."""
    return f"**{name}**" if is_ours else name


def machine_line(info: Record) -> str:
    """The machine in one line."""
    build = info["fusedoptim"]
    kernels = build["instruction_set"] if build["native"] else "NO KERNELS, the reference in Python"
    threads = f"{info['threads']} thread{'s' * (info['threads'] > 1)}"
    place = info.get("gpu", info["cpu"])
    return f"{place}, {threads}, torch {info['torch']}, fusedoptim {build['version']} ({kernels})"


def about(record: Record) -> str:
    """Machine and day of a record."""
    return f"{machine_line(record['machine'])}, {record['machine']['date'][:10]}"


@dataclass(frozen=True)
class Claim:
    """A statement of the documentation: the ratio of two variants' times in a case is at least `target`, or at most."""

    case: Case
    numerator: str
    denominator: str
    target: float
    at_most: bool = False

    def outcome(self, times: Times) -> dict[str, Any]:
        """The claim with the ratio reached and whether it holds."""
        reached = ratio(times[self.numerator], times[self.denominator])
        holds = reached["median"] <= self.target if self.at_most else reached["median"] >= self.target
        return {**asdict(self), "reached": reached, "holds": holds}


def check_claims(claims: Iterable[Claim], measured: Mapping[Case, Times]) -> list[dict[str, Any]]:
    """The outcome of those claims for which everything was measured."""
    return [
        claim.outcome(measured[claim.case])
        for claim in claims
        if {claim.numerator, claim.denominator} <= set(measured.get(claim.case, ()))
    ]


def claims_table(outcomes: Sequence[Record]) -> Table:
    """Target and reached for each claim."""
    rows = [
        (
            " / ".join(claim["case"]),
            f"{claim['numerator']} / {claim['denominator']}",
            f"{'<=' if claim['at_most'] else '>='} {claim['target']}",
            spread_text(claim["reached"]),
            "reached" if claim["holds"] else "missed",
        )
        for claim in outcomes
    ]
    return Table(("case", "ratio of times", "target", "measured", ""), rows, "claims")


def load_json(path: Path) -> dict[str, Any]:
    """A record, empty if there is none."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def save_json(path: Path, record: Record) -> None:
    """Writes a record, creating the folder if need be; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(record, indent=1) + "\n")
    new.replace(path)


def keep(path: Path, part: str, name: str, result: Record) -> None:
    """Puts one result into a file of results, and leaves the others there."""
    record = load_json(path)
    record.setdefault(part, {})[name] = result
    save_json(path, record)


def is_wrong(record: Any) -> bool:
    """Whether anything in a record says that it was not correct."""
    if isinstance(record, Mapping):
        return record.get("correct") is False or any(map(is_wrong, record.values()))
    return isinstance(record, list) and any(map(is_wrong, record))
