"""The section of a page on the figures of `run.py`: times, break points, threads, and what more threads would bring."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from benchmarks.growth.arena import TENSOR
from benchmarks.growth.breaks import CLOSE, PAYS, RATIOS, SHARES, time_of
from benchmarks.growth.model import GRAIN, MODELLED, PAPER_MACHINES, PAPER_SIZES, PAPER_THREADS
from benchmarks.growth.time import VARIANTS
from benchmarks.shared.files import Record
from benchmarks.shared.report import Table, about, number, time_and_ratio
from benchmarks.shared.variants import LIMIT, OURS

TITLES = {"tensors": f"tensors of {TENSOR} elements", "elements": "elements in one tensor"}
SHOWN = {"tensors": 4, "elements": 5}  # every so many sizes
INTRODUCTION = """\
## How cost grows

![Time of a step over the number of tensors and of elements](../benchmarks/results/growth.png)

A step of Adam, fp32, over the number of tensors (of 64 elements each) and over the number of elements in one tensor.
Steps follow one another with nothing between, so what fits in a cache stays there: a training loop, whose forward and
backward pass use the caches too, meets the figures of larger sizes earlier. The streaming limit moves the same bytes
with almost no arithmetic, with one thread or with all, whichever is faster; where there is nothing to move it is an
empty call."""
BREAK_POINTS = f"""\
### Break points

Found in the medians, not by eye: a curve is cut into as few pieces as meet every median within {CLOSE:.0%} (or within
its quartiles, if wider), each of a fixed part and a cost per item. Where one ends and the next begins is a break point,
and from there on the cost per item is another; "none" is one that is lost in the fixed part. A cache is named where
what a step touches outgrows it within a factor of two: 16 bytes an element, or what tensors with all that belongs to
them take of memory (the streaming limit touches elements only). A second thread pays from where one takes {PAYS} times
as long, there and at all larger sizes.
`benchmarks/growth/breaks.py` has the details.
"""
MODEL = """\
### More threads, on paper

`time = max(arithmetic * elements / threads, 28 bytes * elements / bandwidth(threads)) + fixed + wake`

Bandwidth is that of the streaming limit at this size, as measured. For numbers of threads that were not measured it is
that many times one thread's, at the size of a thread's share where this fits its own cache; in memory it is no more
than what is stated. `benchmarks/growth/model.py` says what the rest is. First the parameters, then the model beside the
measurements that they come from, then what it predicts.
"""


def count(size: float) -> str:
    """A number of items: powers of two exactly, others to two digits."""
    whole = round(size)
    if whole >= 2**20 and whole == size and whole & (whole - 1) == 0:
        return f"2^{whole.bit_length() - 1}"
    return f"{whole:,}" if whole == size and whole < 2**20 else f"{float(f'{size:.2g}'):,.0f}"


def memory(size: float) -> str:
    """A number of bytes to two digits or three."""
    unit, text = next(((u, t) for u, t in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")) if size >= u), (1, "bytes"))
    return f"{size / unit:,.{1 if unit > 1 and size < 10 * unit else 0}f} {text}"


def threads_text(threads: int | str) -> str:
    return f"{threads} thread{'s' * (int(threads) > 1)}"


def by_size(
    record: Record, axis: str, what: str, names: Sequence[str], cell: Callable[[Record, str], str]
) -> Iterator[str]:
    """A table with a row for each of some sizes, the last among them, and a column for each variant."""
    results = record["axes"][axis]
    picked = results[:: SHOWN[axis]]
    picked = picked if picked[-1] is results[-1] else [*picked, results[-1]]
    rows = [[count(r["size"]), *(cell(r, name) if name in r["variants"] else "-" for name in names)] for r in picked]
    yield from (*Table([f"{what}, {TITLES[axis]}", *names], rows).markdown(), "")


def cost(piece: Mapping[str, Any]) -> str:
    """What an item costs in a piece, in nanoseconds, unless it is lost in the fixed cost."""
    whole = piece["fixed"] + piece["each"] * piece["last"]
    return number(piece["each"] * 1e3) if piece["each"] * (piece["last"] - piece["first"]) > CLOSE * whole else "none"


def ranges(found: Sequence[Sequence[float]], ends: Sequence[float]) -> str:
    """From where to where a level is reached."""
    if [list(part) for part in found] == [list(ends)]:
        return "everywhere"
    return ", ".join(count(a) if count(a) == count(b) else f"{count(a)} to {count(b)}" for a, b in found) or "-"


def break_points(record: Record, axis: str) -> Iterator[Table]:
    item, curves = axis.removesuffix("s"), record["breaks"][axis]
    sizes = [result["size"] for result in record["axes"][axis]]
    rows = []
    for name, curve in curves.items():
        for piece in curve["pieces"]:
            at_end = [memory(piece["touched"]), ", ".join(piece["outgrown"])]
            stretch = f"{count(piece['first'])} to {count(piece['last'])}"
            rows.append([name, stretch, cost(piece), *(at_end if piece is not curve["pieces"][-1] else ["", ""])])
    yield Table(
        [f"curve, {axis}", "piece", f"ns per {item}", "memory touched at its end", "cache outgrown there"], rows
    )
    places = "doubled_at", "second_thread_pays_from"
    rows = [[n, number(c["fixed"]), *(count(c[k]) if c[k] else "-" for k in places)] for n, c in curves.items()]
    yield Table([f"curve, {axis}", f"µs with one {item}", "twice that at", "second thread pays from"], rows)
    for levels in ([str(level) for level in some] for some in (RATIOS, SHARES)):
        found = {name: c["ratio_at_least"] for name, c in curves.items() if set(c["ratio_at_least"]) == set(levels)}
        rows = [[name, *(ranges(at[level], (sizes[0], sizes[-1])) for level in levels)] for name, at in found.items()]
        yield Table([f"time / ours, {axis}", *(f"at least {float(level):g}" for level in levels)], rows)


def fitted(record: Record) -> Iterator[Table]:
    """The parameters of the model, and how it fares against the measurements."""
    known, threads = record["model"]["parameters"], record["settings"]["threads"]
    yield Table(["parameter, as measured", *MODELLED], [
        ["arithmetic, ns per element, one thread", *(f"{known['arithmetic'][name] * 1e3:.3f}" for name in MODELLED)],
        ["fixed, µs", *(number(known["fixed"][name]) for name in MODELLED)],
        [f"wake, µs, {threads} threads", *[number(known["wake"])] * len(MODELLED)],
    ])  # fmt: skip
    places = {size: known["sizes"].index(size) for size in PAPER_SIZES if size in known["sizes"]}
    rows = [
        [threads_text(k), *(number(rates[at] / 1e3) for at in places.values())]
        for k, rates in known["bandwidth"].items()
    ]
    yield Table(["bandwidth of the streaming limit, GB/s, at so many elements", *map(count, places)], rows)
    rows = []
    for name, k in product(MODELLED, (1, threads)):
        held = record["model"]["held_against"]
        off = sorted(r["off"] for r in held if (r["variant"], r["threads"]) == (name, k))
        rows.append([f"{name}, {threads_text(k)}", *(f"{off[i * (len(off) - 1) // 4]:.2f}" for i in range(5))])
    yield Table(
        ["model / measured, over all sizes", "minimum", "first quartile", "median", "third quartile", "maximum"], rows
    )


def predictions(record: Record) -> Iterator[str]:
    """What the model says of more threads: a row for each variant and size."""
    machines = ", ".join(f"{stated} GB/s ({machine})" for machine, stated in PAPER_MACHINES.items())
    yield f"**Predictions, nothing of which was run:** cores and caches as here, memory of {machines}. "
    yield f"There are no more threads than one for each {GRAIN:,} elements, so small steps gain nothing by more.\n"
    results = {result["size"]: result for result in record["axes"]["elements"]}
    times = {(r["variant"], r["elements"], r["machine"], r["threads"]): r["time"] for r in record["model"]["predicted"]}
    rows = []
    for name, size in product(MODELLED, dict.fromkeys(size for _, size, _, _ in times)):
        measured = number(time_of(results[size], name)["median"]) if size in results else "-"
        modelled = (number(times[name, size, m, k]) for m, k in product(PAPER_MACHINES, PAPER_THREADS))
        rows.append([f"{name}, {count(size)} elements", measured, *modelled])
    columns = (f"{k}, {stated} GB/s" for stated, k in product(PAPER_MACHINES.values(), PAPER_THREADS))
    header = ["µs a step, by threads and memory", f"{record['settings']['threads']}, measured", *columns]
    yield from Table(header, rows).markdown()


def section(record: Record) -> Iterator[str]:
    axes = [axis for axis in record["axes"] if axis in record["breaks"]]
    yield f"{INTRODUCTION} An empty call takes {number(record['empty_call']['median'])} µs.\n"
    yield f"{about(record)}\n"
    names = (OURS, *(name for name in VARIANTS if name != OURS), LIMIT)
    for axis in axes:
        yield from by_size(
            record, axis, "µs a step (times ours)", names,
            lambda r, name: time_and_ratio({**r["variants"][name], "time": time_of(r, name)}),
        )  # fmt: skip
    for note in record["left_out"]:
        yield f"Left out: {note}.\n"
    yield BREAK_POINTS
    for axis in axes:
        for table in break_points(record, axis):
            yield from (*table.markdown(), "")
    yield "### Threads\n"
    for axis in axes:
        yield from by_size(
            record, axis, f"time of 1 thread / of {record['settings']['threads']}", (*VARIANTS, LIMIT),
            lambda r, name: f"{r['variants'][name]['scaling']['median']:.2f}",
        )  # fmt: skip
    if record["model"]:
        yield MODEL
        for table in fitted(record):
            yield from (*table.markdown(), "")
        yield from predictions(record)
    yield ""
