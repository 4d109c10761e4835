"""Prints the results of `train_loop.py` and `compare_step.py` as Markdown tables, or writes them into the README."""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.loop.tables import case_label
from benchmarks.shared.report import RESULTS, machine_line, number
from benchmarks.shared.variants import OURS, OURS_CALLS, RULES

Result = Mapping[str, Any]
SECTION = "figures"
LOOP_COLUMNS = (OURS, OURS_CALLS, "torch-default", "torch-fused")  # the best and the plainest of both


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a Markdown table, first column to the left and the others to the right."""
    yield f"| {' | '.join(header)} |"
    yield f"|---{'|--:' * (len(header) - 1)}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def cell(figures: Result, time: str, ratio: str) -> str:
    """A time in microseconds and how many times ours it is; a wrong result is no result."""
    if not figures.get("correct", True):
        return "WRONG"
    text = number(figures[time]["median"])
    return f"{text} ({figures[ratio]['median']:.2f} x)" if ratio in figures else text


def tables(record: Result, optimizers: Sequence[str]) -> Iterator[str]:
    """The machine and one line per case of a record, `time` being that of the whole loop or of the step."""
    results = [result for result in record["results"] if result["optimizer"] in optimizers]
    time, ratio = ("loop", "loop_ratio") if "workload" in results[0] else ("time", "ratio")
    names = [OURS, *(name for name in results[0]["variants"] if name != OURS)]
    if time == "loop":
        names = [name for name in LOOP_COLUMNS if any(name in result["variants"] for result in results)]
    rows = (
        [
            case_label(result),
            *(cell(result["variants"][name], time, ratio) if name in result["variants"] else "" for name in names),
        ]
        for result in results
    )
    yield from table([f"µs per {'iteration' if time == 'loop' else 'step'} (times ours)", *names], rows)
    yield f"\n{machine_line(record['machine'])}, {record['machine']['date'][:10]}\n"


def marks(section: str) -> tuple[str, str]:
    """The lines between which a generated section of a file stands."""
    return f"<!-- {section}: begin -->", f"<!-- {section}: end -->"


def write_into(path: Path, lines: Sequence[str], section: str = SECTION) -> None:
    """Replaces what stands between the two marks of a section in a file."""
    begin, end = marks(section)
    before, found, rest = path.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise SystemExit(f"{path} lacks the lines {begin} and {end}")
    path.write_text("\n".join((before + begin, *lines, end + after)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints or writes a table for each file of results."""
    parser = argparse.ArgumentParser(description=__doc__)
    files = [RESULTS / "train_loop.json", RESULTS / "compare_step.json"]
    parser.add_argument("files", nargs="*", type=Path, default=files, help="JSON files (default: those in results)")
    parser.add_argument("--optimizer", nargs="+", default=list(RULES), help="which optimizers (default: all)")
    parser.add_argument("--into", type=Path, help=f"a file to write to, between {' and '.join(marks(SECTION))}")
    args = parser.parse_args(arguments)
    lines = [line for path in args.files for line in tables(json.loads(path.read_text()), args.optimizer)]
    if args.into:
        write_into(args.into, lines)
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
