"""Writes the results of `busy.py` into docs/benchmarks.md as Markdown, between the marks of the section "busy"."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.growth.page import PAGE
from benchmarks.publish.markdown import table, write_into
from benchmarks.shared.report import RESULTS, machine_line, number

Result = Mapping[str, Any]
SECTION = "busy"


def rows_of(results: Sequence[Result], row: str, column: str, *keys: str) -> Iterator[list[str]]:
    """A row for each value of `row`; for each value of `column` and each key, the median."""
    found = {(str(r[row]), str(r[column])): r for r in results}
    rows, columns = (dict.fromkeys(str(r[name]) for r in results) for name in (row, column))
    for name in rows:
        cells = []
        for other, key in product(columns, keys):
            value = found[name, other]["largest"]["ratio"] if key == "largest" else found[name, other][key]
            cells.append(number(value["median"]))
        yield [name, *cells]


def headings(results: Sequence[Result], column: str, *names: str) -> list[str]:
    """The columns of `rows_of`."""
    return [f"{one}, {name}" for one, name in product(dict.fromkeys(str(r[column]) for r in results), names)]


def outcome(result: Result) -> str:
    """What became of a forked child."""
    if "failure" in result:
        return "hangs" if "hang" in result["failure"] else "fails"
    return f"{result['ratio']['median']:.2f} x" if result["correct"] else "WRONG"


def section(record: Result) -> Iterator[str]:
    """The lines of the section."""
    machine = record["busy"]["resnet50"]["machine"]
    yield "## Beside other processes, with more threads, after a fork\n"
    yield f"""\
Adam, fp32, steps one after another. Other processes compute without end, one or two of them, on a machine of
{machine["cores"]} processors; medians over rounds of the median and of the mean, and the largest of 500 steps (of those
there are, where fewer fit the time) over their median. `benchmarks/busy.py` measures it.
"""
    yield f"{machine_line(machine)}, {machine['date'][:10]}\n"
    for model, part in record["busy"].items():
        results = part["results"]
        names = headings(results, "state", "median", "mean", "largest / median")
        yield from table([f"{model}, µs", *names], rows_of(results, "variant", "state", "time", "mean", "largest"))
        yield ""
    yield "By the number of threads that torch is told to use, µs:\n"
    for model, part in record["threads"].items():
        names = [f"{count} thread{'s' * (count > 1)}" for count in dict.fromkeys(r["threads"] for r in part["results"])]
        yield from table([model, *names], rows_of(part["results"], "variant", "threads", "time"))
        yield ""
    yield "In a child forked from a process that has stepped with several threads, time over the parent's:\n"
    for model, part in record["fork"].items():
        rows = [
            [f"{r['variant']}, {r['way']}", str(r["child_threads"] or machine["threads"]), outcome(r)]
            for r in part["results"]
        ]
        yield from table([model, "threads", "child"], rows)
        yield ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=RESULTS / "busy.json", help="default: that in results")
    parser.add_argument("--into", type=Path, default=PAGE, help="the page (default: docs/benchmarks.md)")
    args = parser.parse_args(arguments)
    write_into(args.into, list(section(json.loads(args.file.read_text()))), SECTION)


if __name__ == "__main__":
    main()
