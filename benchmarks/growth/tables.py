"""The section of a page on the figures of `run.py`: times, break points, threads, and what more threads would bring."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from benchmarks.growth.arena import TENSOR
from benchmarks.growth.breaks import CLOSE, PAYS, RATIOS, SHARES, time_of
from benchmarks.growth.model import GRAIN, MODELLED, PAPER_MACHINES, PAPER_SIZES, PAPER_THREADS
from benchmarks.growth.time import VARIANTS
from benchmarks.shared.report import Record as Result
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

MODEL = """\
`time = max(arithmetic * elements / threads, 28 bytes * elements / bandwidth(threads)) + fixed + wake`

Bandwidth is that of the streaming limit at this size, as measured. For numbers of threads that were not measured it is
that many times one thread's, at the size of a thread's share where this fits its own cache; in memory it is no more
than what is stated. `benchmarks/growth/model.py` says what the rest is. First the parameters, then the model beside the
measurements that they come from, then what it predicts.
"""


def _table(header: Sequence[str], rows: Any) -> Iterator[str]:
    return Table(header, rows).markdown()


def count(size: float) -> str:
    """A number of items: powers of two exactly, others to two digits."""
    whole = round(size)
    if whole >= 2**20 and whole == size and whole & (whole - 1) == 0:
        return f"2^{whole.bit_length() - 1}"
    if whole == size and whole < 2**20:
        return f"{whole:,}"
    return f"{float(f'{size:.2g}'):,.0f}"


def shown(record: Result, axis: str) -> list[Result]:
    """The sizes that tables show."""
    results = record["axes"][axis]
    picked = results[:: SHOWN[axis]]
    return picked if picked[-1] is results[-1] else [*picked, results[-1]]


def times(record: Result, axis: str) -> Iterator[str]:
    """Time and ratio to ours at some sizes."""
    names = (OURS, *(name for name in VARIANTS if name != OURS), LIMIT)
    rows = []
    for result in shown(record, axis):
        cells = []
        for name in names:
            figures = result["variants"].get(name)
            cells.append(time_and_ratio({**figures, "time": time_of(result, name)}) if figures else "-")
        rows.append([count(result["size"]), *cells])
    yield from _table([f"µs a step (times ours), {TITLES[axis]}", *names], rows)


def memory(size: float) -> str:
    """A number of bytes to two digits or three."""
    unit, text = next(((u, t) for u, t in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")) if size >= u), (1, "bytes"))
    return f"{size / unit:,.{1 if unit > 1 and size < 10 * unit else 0}f} {text}"


def cost(piece: Mapping[str, Any]) -> str:
    """What an item costs in a piece, in nanoseconds, unless it is lost in the fixed cost."""
    whole = piece["fixed"] + piece["each"] * piece["last"]
    return number(piece["each"] * 1e3) if piece["each"] * (piece["last"] - piece["first"]) > CLOSE * whole else "none"


def break_rows(record: Result, axis: str) -> Iterator[list[str]]:
    """A row for each piece of each curve."""
    for name, curve in record["breaks"][axis].items():
        for piece in curve["pieces"]:
            at_end = [memory(piece["touched"]), ", ".join(piece["outgrown"])]
            stretch = f"{count(piece['first'])} to {count(piece['last'])}"
            yield [name, stretch, cost(piece), *(at_end if piece is not curve["pieces"][-1] else ["", ""])]


def once_rows(record: Result, axis: str) -> Iterator[list[str]]:
    """A row for each curve: where it begins to grow, and where a second thread pays."""
    for name, curve in record["breaks"][axis].items():
        twice, pays = curve["doubled_at"], curve["second_thread_pays_from"]
        yield [name, number(curve["fixed"]), count(twice) if twice else "-", count(pays) if pays else "-"]


def ratio_rows(record: Result, axis: str, levels: Sequence[float]) -> Iterator[list[str]]:
    """A row for each curve of which these levels were looked for: from where to where it is so many times ours."""
    ends = [result["size"] for result in record["axes"][axis]]
    for name, curve in record["breaks"][axis].items():
        found = curve["ratio_at_least"]
        if set(found) == set(map(str, levels)):
            everywhere = [[ends[0], ends[-1]]]
            yield [name, *(
                "everywhere" if [list(part) for part in found[str(level)]] == everywhere
                else ", ".join(count(a) if count(a) == count(b) else f"{count(a)} to {count(b)}"
                               for a, b in found[str(level)]) or "-"
                for level in levels
            )]  # fmt: skip


def break_points(record: Result, axis: str) -> Iterator[str]:
    """What was found in the curves of one axis."""
    item = axis.removesuffix("s")
    heads = [f"curve, {axis}", "piece", f"ns per {item}", "touched at its end", "outgrown there"]
    yield from (*_table(heads, break_rows(record, axis)), "")
    heads = [f"curve, {axis}", f"µs with one {item}", "twice that at", "second thread pays from"]
    yield from (*_table(heads, once_rows(record, axis)), "")
    for levels in (RATIOS, SHARES):
        heads = [f"time / ours, {axis}", *(f"at least {level:g}" for level in levels)]
        yield from (*_table(heads, ratio_rows(record, axis, levels)), "")


def scaling(record: Result, axis: str) -> Iterator[str]:
    """How many times faster all threads are than one."""
    names = (*VARIANTS, LIMIT)
    rows = [
        [
            count(r["size"]),
            *(f"{r['variants'][n]['scaling']['median']:.2f}" if n in r["variants"] else "-" for n in names),
        ]
        for r in shown(record, axis)
    ]
    yield from _table([f"time of 1 thread / of {record['settings']['threads']}, {TITLES[axis]}", *names], rows)


def paper(record: Result) -> Iterator[str]:
    """The model: its parameters, how it fares against the measurements, what it predicts."""
    fitted, threads = record["model"], record["settings"]["threads"]
    known = fitted["parameters"]
    yield MODEL
    yield from _table(["parameter, as measured", *MODELLED], [
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
    yield from _table(["bandwidth of the streaming limit, GB/s, at so many elements", *map(count, sizes)], rows)
    yield ""
    rows = []
    for name, k in product(MODELLED, (1, threads)):
        off = sorted(r["off"] for r in fitted["held_against"] if (r["variant"], r["threads"]) == (name, k))
        quartiles = (f"{off[i * (len(off) - 1) // 4]:.2f}" for i in range(5))
        rows.append([f"{name}, {k} thread{'s' * (k > 1)}", *quartiles])
    yield from _table(
        ["model / measured, over all sizes", "least", "quarter", "median", "three quarters", "most"], rows
    )
    machines = ", ".join(f"{stated} GB/s ({machine})" for machine, stated in PAPER_MACHINES.items())
    yield f"\n**Predictions, nothing of which was run:** cores and caches as here, memory of {machines}. "
    yield f"There are no more threads than one for each {GRAIN:,} elements, so small steps gain nothing by more.\n"
    columns = (f"{k}, {stated} GB/s" for stated, k in product(PAPER_MACHINES.values(), PAPER_THREADS))
    yield from _table(["µs a step, by threads and memory", f"{threads}, measured", *columns], predictions(record))


def predictions(record: Result) -> Iterator[list[str]]:
    """A row for each variant and size."""
    results = {result["size"]: result for result in record["axes"]["elements"]}
    times = {(r["variant"], r["elements"], r["machine"], r["threads"]): r["time"] for r in record["model"]["predicted"]}
    for name, size in product(MODELLED, dict.fromkeys(size for _, size, _, _ in times)):
        measured = number(time_of(results[size], name)["median"]) if size in results else "-"
        modelled = (number(times[name, size, m, k]) for m, k in product(PAPER_MACHINES, PAPER_THREADS))
        yield [f"{name}, {count(size)} elements", measured, *modelled]


def section(record: Result) -> Iterator[str]:
    """The lines of the section."""
    axes = [axis for axis in record["axes"] if axis in record["breaks"]]
    yield f"{INTRODUCTION} An empty call takes {number(record['empty_call']['median'])} µs.\n"
    yield f"{about(record)}\n"
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
`benchmarks/growth/breaks.py` has the details.
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
