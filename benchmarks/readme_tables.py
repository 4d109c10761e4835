"""Prints the results of `train_loop.py` and `compare_step.py` as Markdown tables, for the README."""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from report import RESULTS, machine_line, number
from variants import OURS, RULES

Result = Mapping[str, Any]


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


def tables(record: Result) -> Iterator[str]:
    """The machine and one line per case of a record, `time` being that of the whole loop or of the step."""
    results = record["results"]
    subject, time, ratio = (
        ("workload", "loop", "loop_ratio") if "workload" in results[0] else ("model", "time", "ratio")
    )
    names = [OURS, *(name for name in results[0]["variants"] if name != OURS)]
    rows = (
        [
            f"{result[subject]}, {RULES[result['optimizer']].class_name}",
            *(cell(result["variants"][name], time, ratio) for name in names),
        ]
        for result in results
    )
    yield from table([f"µs per {'iteration' if time == 'loop' else 'step'} (times ours)", *names], rows)
    yield f"\n{machine_line(record['machine'])}, {record['machine']['date'][:10]}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table for each file of results."""
    parser = argparse.ArgumentParser(description=__doc__)
    files = [RESULTS / "train_loop.json", RESULTS / "compare_step.json"]
    parser.add_argument("files", nargs="*", type=Path, default=files, help="JSON files (default: those in results)")
    for path in parser.parse_args(arguments).files:
        print("\n".join(tables(json.loads(path.read_text()))))


if __name__ == "__main__":
    main()
