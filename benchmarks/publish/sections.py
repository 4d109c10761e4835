"""The generated sections of the pages: the tables of the questions, with what stands around them, as Markdown."""

from collections.abc import Callable, Iterator

from benchmarks.busy import run as busy_run
from benchmarks.growth import run as growth_run
from benchmarks.limits import run as limits_run
from benchmarks.loop import run as loop_run
from benchmarks.loop import tail as loop_tail
from benchmarks.peers import run as peers_run
from benchmarks.shared.files import Record
from benchmarks.shared.report import Table, about, time_and_ratio
from benchmarks.shared.variants import OURS, OURS_CALLS, RULES
from benchmarks.step import cliffs as step_cliffs
from benchmarks.step import host_costs as step_host_costs
from benchmarks.step import in_backward as step_in_backward
from benchmarks.step import kernel_costs as step_kernel_costs

RULE = "adam"  # whose figures the README shows
LOOP_COLUMNS = (OURS, OURS_CALLS, "torch-default", "torch-fused")  # the best and the plainest of both
FIXED = ("Adam, 64 elements", "zero_grad, nothing there")  # calls whose fixed costs are said


def figures(loops: Record, steps: Record) -> Iterator[str]:
    chosen = [[result for result in record["results"] if result["optimizer"] == RULE] for record in (loops, steps)]
    names = [name for name in LOOP_COLUMNS if any(name in result["variants"] for result in chosen[0])]
    rows = [
        [loop_run.case_label(r), *(time_and_ratio(r["variants"].get(n), "loop", "loop_ratio") for n in names)]
        for r in chosen[0]
    ]
    yield from Table(["µs per iteration (times ours)", *names], rows).markdown()
    yield f"\n{about(loops)}\n"
    names = list(dict.fromkeys((OURS, *chosen[1][0]["variants"])))
    label = RULES[RULE].class_name
    rows = [[f"{r['model']}, {label}", *(time_and_ratio(r["variants"].get(n)) for n in names)] for r in chosen[1]]
    yield from Table(["µs per step (times ours)", *names], rows).markdown()
    yield f"\n{about(steps)}\n"


def _plain(tables: Callable[[Record], Iterator[Table]]) -> Callable[[Record], Iterator[str]]:
    """Tables one after another, and the machine."""

    def lines(record: Record) -> Iterator[str]:
        for table in tables(record):
            yield from (*table.markdown(), "")
        yield about(record)

    return lines


kernel_costs = _plain(step_kernel_costs.tables)
in_backward = _plain(step_in_backward.tables)
tail = _plain(loop_tail.tables)
busy = _plain(busy_run.tables)
growth = _plain(growth_run.tables)


def peers(record: Record) -> Iterator[str]:
    yield from _plain(peers_run.tables)(record)
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
    for table in limits_run.tables(record):
        yield f"{table.title[0].upper()}{table.title[1:]}:\n"
        yield from (*table.markdown(), "")
    caches = ", ".join(f"{level} {size / 2**20:g} MiB" for level, size in sorted(record["caches"].items()))
    machine, _, date = about(record).rpartition(", ")
    yield f"{machine}, caches of its threads {caches}, {date}."
