"""How results are shown: text, tables on the console and in Markdown, progress."""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rich import box, progress
from rich import table as rich_table
from rich.console import Console

from benchmarks.shared.files import Record
from benchmarks.shared.variants import OURS

MINIMUM_WIDTH = 148
T = TypeVar("T")
Times = Mapping[str, Sequence[float]]  # by variant, one figure per round
Column = str | Callable[[Any], str]  # a path into figures, such as "time" or "error.overall", or what makes the text


@functools.cache
def make_console() -> Console:
    """A console wide enough for the tables even where the output is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, MINIMUM_WIDTH))


def each(cases: Sequence[T], label: Callable[[T], str] = ", ".join) -> Iterator[T]:  # type: ignore[assignment]
    """The cases, with a progress bar that names the current one."""
    columns = (progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeRemainingColumn())
    description = progress.TextColumn("{task.description:32}")
    with progress.Progress(description, *columns, console=make_console(), transient=True) as shown:
        bar = shown.add_task("", total=len(cases))
        for case in cases:
            shown.update(bar, description=label(case))
            yield case
            shown.advance(bar)


def number(value: float) -> str:
    """A figure to about four digits, an error to two."""
    if 0 < value < 1e-3:
        return f"{value:.1e}"
    return f"{value:,.{0 if value >= 1000 else 1 if value >= 100 else 2}f}"


def spread_text(spread: Record | None) -> str:
    """The median, and half the interquartile range as a share of it."""
    if spread is None:
        return "-"
    return f"{number(spread['median'])} ±{(spread['high'] - spread['low']) / (2 * spread['median']):.0%}"


def correct_text(correct: bool | None) -> str:
    """The word in the column "result"; None is what there was no time to check."""
    return {True: "correct", False: "WRONG", None: "not checked"}[correct]


def result_text(figures: Record) -> str:
    """Whether it was correct, and after how many rounds it was stopped, if it was."""
    unfinished = f", unfinished: {figures['unfinished']}" if figures.get("unfinished") else ""
    return correct_text(figures["correct"]) + unfinished if "correct" in figures else unfinished.removeprefix(", ")


def unfinished(rounds: int, planned: int) -> dict[str, str]:
    """What is added to the figures of a variant that was stopped before its last round."""
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


def bold(name: str, is_bold: bool = True) -> str:
    return f"**{name}**" if is_bold else name


def cell(figures: Record, column: Column) -> str:
    """The text of a column: of a spread the median with its spread, of what is not there a dash."""
    if not isinstance(column, str):
        return column(figures)
    value: Any = figures
    for key in column.split("."):
        value = value.get(key) if value else None
    return value if isinstance(value, str) else number(value) if isinstance(value, float | int) else spread_text(value)


@dataclass(frozen=True)
class Table:
    """Rows whose first column is text and whose others are figures; cells in two asterisks are bold."""

    header: Sequence[str]
    rows: Iterable[Sequence[str]]
    title: str = ""

    @classmethod
    def of(
        cls, columns: Mapping[str, Any], items: Mapping[str, Record] | Iterable[tuple[str, Record]], title: str = "",
        ours: str = "", corner: str = "",
    ) -> "Table":  # fmt: skip
        """A row for each item, the name of `ours` in bold; each column is a `Column`."""
        pairs = items.items() if isinstance(items, Mapping) else items
        rows = ((bold(name, name == ours), *(cell(f, c) for c in columns.values())) for name, f in pairs)
        return cls((corner, *columns), rows, title)

    @classmethod
    def pivot(cls, corner: str, cells: Mapping[tuple[str, str], str], title: str = "") -> "Table":
        """The cells by the names of their rows and columns, which are in the order of their first cells."""
        names, header = (dict.fromkeys(key[i] for key in cells) for i in (0, 1))
        return cls((corner, *header), ([name, *(cells[name, column] for column in header)] for name in names), title)

    def markdown(self) -> Iterator[str]:
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


def machine_line(info: Record) -> str:
    build = info["fusedoptim"]
    kernels = build["instruction_set"] if build["native"] else "NO KERNELS, the reference in Python"
    threads = f"{info['threads']} thread{'s' * (info['threads'] > 1)}"
    place = info.get("gpu", info["cpu"])
    return f"{place}, {threads}, torch {info['torch']}, fusedoptim {build['version']} ({kernels})"


def about(record: Record) -> str:
    """Machine and day of a record."""
    return f"{machine_line(record['machine'])}, {record['machine']['date'][:10]}"


def is_wrong(record: Any) -> bool:
    """Whether anything in a record says that it was not correct; beside ours, other implementations do not count."""
    if isinstance(record, Mapping):
        counted = [figures for name, figures in record.items() if OURS not in record or name.startswith(OURS)]
        return record.get("correct") is False or any(map(is_wrong, counted))
    return isinstance(record, list) and any(map(is_wrong, record))
