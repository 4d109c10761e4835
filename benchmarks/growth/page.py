"""Writes the results of `growth.py` into a page as Markdown, between two marks; makes the page if there is none."""

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from benchmarks.growth.breaks import CLOSE, PAYS
from benchmarks.growth.model import GRAIN, MODELLED, PAPER_MACHINES, PAPER_SIZES, PAPER_THREADS
from benchmarks.growth.tables import Result, break_points, count, scaling, times
from benchmarks.growth.time import time_of
from benchmarks.publish.markdown import marks, table, write_into
from benchmarks.shared.report import RESULTS, machine_line, number

SECTION = "growth"
PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "benchmarks.md"
HEAD = "# Benchmarks\n\n"
INTRODUCTION = """\
## How cost grows

![Time of a step over the number of tensors and of elements](../benchmarks/results/growth.png)

A step of Adam, fp32, over the number of tensors (of 64 elements each) and over the number of elements in one tensor.
Steps follow one another with nothing between, so what fits in a cache stays there: a training loop, whose forward and
backward pass use the caches too, meets the figures of larger sizes earlier. The streaming limit moves the same bytes
with almost no arithmetic, with one thread or with all, whichever is faster; where there is nothing to move it is an
empty call."""

MODEL = """\
`time = max(arithmetic * elements / threads, 28 bytes * elements / bandwidth(threads)) + fixed + wake`

Bandwidth is that of the streaming limit at this size, as measured. For numbers of threads that were not measured it is
that many times one thread's, at the size of a thread's share where this fits its own cache; in memory it is no more
than what is stated. `benchmarks/growth_model.py` says what the rest is. First the parameters, then the model beside the
measurements that they come from, then what it predicts.
"""


def paper(record: Result) -> Iterator[str]:
    """The model: its parameters, how it fares against the measurements, what it predicts."""
    fitted, threads = record["model"], record["settings"]["threads"]
    known = fitted["parameters"]
    yield MODEL
    yield from table(["parameter, as measured", *MODELLED], [
        ["arithmetic, ns per element, one thread", *(f"{known['arithmetic'][name] * 1e3:.3f}" for name in MODELLED)],
        ["fixed, µs", *(number(known["fixed"][name]) for name in MODELLED)],
        [f"wake, µs, {threads} threads", *[number(known["wake"])] * len(MODELLED)],
    ])  # fmt: skip
    yield ""
    sizes = [size for size in PAPER_SIZES if size in known["sizes"]]
    rows = [
        [f"{k} thread{'s' * (int(k) > 1)}", *(number(rates[known["sizes"].index(size)] / 1e3) for size in sizes)]
        for k, rates in known["bandwidth"].items()
    ]
    yield from table(["bandwidth of the streaming limit, GB/s, at so many elements", *map(count, sizes)], rows)
    yield ""
    rows = []
    for name, k in product(MODELLED, (1, threads)):
        off = sorted(r["off"] for r in fitted["held_against"] if (r["variant"], r["threads"]) == (name, k))
        quartiles = (f"{off[i * (len(off) - 1) // 4]:.2f}" for i in range(5))
        rows.append([f"{name}, {k} thread{'s' * (k > 1)}", *quartiles])
    yield from table(["model / measured, over all sizes", "least", "quarter", "median", "three quarters", "most"], rows)
    machines = ", ".join(f"{stated} GB/s ({machine})" for machine, stated in PAPER_MACHINES.items())
    yield f"\n**Predictions, nothing of which was run:** cores and caches as here, memory of {machines}. "
    yield f"There are no more threads than one for each {GRAIN:,} elements, so small steps gain nothing by more.\n"
    columns = (f"{k}, {stated} GB/s" for stated, k in product(PAPER_MACHINES.values(), PAPER_THREADS))
    yield from table(["µs a step, by threads and memory", f"{threads}, measured", *columns], predictions(record))


def predictions(record: Result) -> Iterator[list[str]]:
    """A row for each variant and size."""
    results = {result["size"]: result for result in record["axes"]["elements"]}
    times = {(r["variant"], r["elements"], r["machine"], r["threads"]): r["time"] for r in record["model"]["predicted"]}
    for name, size in product(MODELLED, dict.fromkeys(size for _, size, _, _ in times)):
        measured = number(time_of(results[size], name).median) if size in results else "-"
        modelled = (number(times[name, size, m, k]) for m, k in product(PAPER_MACHINES, PAPER_THREADS))
        yield [f"{name}, {count(size)} elements", measured, *modelled]


def section(record: Result) -> Iterator[str]:
    """The lines of the section."""
    machine, axes = record["machine"], [axis for axis in record["axes"] if axis in record["breaks"]]
    yield f"{INTRODUCTION} An empty call takes {number(record['empty_call']['median'])} µs.\n"
    yield f"{machine_line(machine)}, {machine['date'][:10]}\n"
    for axis in axes:
        yield from (*times(record, axis), "")
    for note in record["left_out"]:
        yield f"Left out: {note}.\n"
    yield f"""\
### Break points

Found in the medians, not by eye: a curve is cut into as few pieces as meet every median within {CLOSE:.0%} (or within
its quartiles, if wider), each of a fixed part and a cost per item. Where one ends and the next begins is a break point,
and from there on the cost per item is another; "none" is one that is lost in the fixed part. A cache is named where
what a step touches outgrows it within a factor of two: 16 bytes an element, or what tensors with all that belongs to
them take of memory (the streaming limit touches elements only). A second thread pays from where one takes {PAYS} times
as long, there and at all larger sizes.
`benchmarks/growth_breaks.py` has the details.
"""
    for axis in axes:
        yield from break_points(record, axis)
    yield "### Threads\n"
    for axis in axes:
        yield from (*scaling(record, axis), "")
    if record["model"]:
        yield "### More threads, on paper\n"
        yield from paper(record)
    yield ""


def add_marks(path: Path) -> None:
    """Puts the section's marks at the end of a page that has none, and makes the page if need be."""
    text = path.read_text() + "\n" if path.exists() else HEAD
    if marks(SECTION)[0] not in text:
        path.write_text("\n".join((text + marks(SECTION)[0], marks(SECTION)[1], "")))


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=RESULTS / "growth.json", help="default: that in results")
    parser.add_argument("--into", type=Path, default=PAGE, help="the page (default: docs/benchmarks.md)")
    args = parser.parse_args(arguments)
    add_marks(args.into)
    write_into(args.into, list(section(json.loads(args.file.read_text()))), SECTION)


if __name__ == "__main__":
    main()
