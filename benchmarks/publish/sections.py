"""The generated sections of the pages: the tables of the questions, with what stands around them, as Markdown."""

import importlib
from collections.abc import Iterable, Iterator

from benchmarks.__main__ import QUESTIONS
from benchmarks.limits import run as limits_run
from benchmarks.loop import run as loop_run
from benchmarks.peers import run as peers_run
from benchmarks.shared.files import Record
from benchmarks.shared.report import Table, about, time_and_ratio
from benchmarks.shared.variants import OURS, OURS_CALLS, RULES
from benchmarks.step import cliffs as step_cliffs
from benchmarks.step import host_costs as step_host_costs

RULE = "adam"  # whose figures the README shows
LOOP_COLUMNS = (OURS, OURS_CALLS, "torch-default", "torch-fused")  # the best and the plainest of both
FIXED = ("Adam, 64 elements", "zero_grad, nothing there")  # calls whose fixed costs are said


def figures(loops: Record, steps: Record) -> Iterator[str]:
    chosen = [[result for result in record["results"] if result["optimizer"] == RULE] for record in (loops, steps)]
    cells = {
        (loop_run.case_label(r), name): time_and_ratio(r["variants"].get(name), "loop", "loop_ratio")
        for r in chosen[0]
        for name in LOOP_COLUMNS
    }
    yield from Table.pivot("µs per iteration (times ours)", cells).markdown()
    yield f"\n{about(loops)}\n"
    cells = {
        (f"{r['model']}, {RULES[RULE].class_name}", name): time_and_ratio(r["variants"].get(name))
        for r in chosen[1]
        for name in (OURS, *r["variants"])
    }
    yield from Table.pivot("µs per step (times ours)", cells).markdown()
    yield f"\n{about(steps)}\n"


def titled(tables: Iterable[Table]) -> Iterator[str]:
    for table in tables:
        if table.title:
            yield f"{table.title[0].upper()}{table.title[1:]}:\n"
        yield from (*table.markdown(), "")


def tables_of(question: str, record: Record) -> Iterator[str]:
    """The tables of a question one after another, and the machine: a section that has no function of its own here."""
    yield from titled(importlib.import_module(f"benchmarks.{QUESTIONS[question]}").tables(record))
    yield about(record)


def peers(record: Record) -> Iterator[str]:
    yield from tables_of("peers", record)
    yield f"Python {record['machine']['python']}, {', '.join(map(' '.join, record['versions'].items()))}"
    yield "\nNot measured, and why (exceptions as the package raised them):\n"
    yield from (f"- {line}" for line in peers_run.not_measured(record))


def host_costs(record: Record) -> Iterator[str]:
    parts = next(step_host_costs.tables(record))
    calls = (f"{name}: {record['calls'][name]['call']['median']:,.0f} ns" for name in FIXED)
    yield from (*parts.markdown(), "", f"Fixed cost of a call: {'; '.join(calls)}.", "", about(record))


def cliffs(record: Record) -> Iterator[str]:
    (table,) = step_cliffs.tables(record)
    count, over = len(record["situations"]), sum(r["over"] for r in record["situations"])
    yield from table.markdown()
    yield f"\n{count - over} of {count} take no more than is allowed; the others are **bold**.\n\n{about(record)}"


def limits(record: Record) -> Iterator[str]:
    yield from titled(limits_run.tables(record))
    caches = ", ".join(f"{level} {size / 2**20:g} MiB" for level, size in sorted(record["caches"].items()))
    machine, _, date = about(record).rpartition(", ")
    yield f"{machine}, caches of its threads {caches}, {date}."
