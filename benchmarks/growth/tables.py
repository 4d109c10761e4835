"""The figures of `growth.py` as Markdown tables: times, break points, two threads beside one."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.growth.breaks import CLOSE, RATIOS, SHARES
from benchmarks.growth.chart import TITLES
from benchmarks.growth.time import VARIANTS, time_of
from benchmarks.publish.markdown import cell, table
from benchmarks.shared.report import number
from benchmarks.shared.variants import OURS
from benchmarks.step.run import LIMIT

SHOWN = {"tensors": 4, "elements": 5}  # every so many sizes

Result = Mapping[str, Any]


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
            time = {"time": {"median": time_of(result, name).median}} if figures else {}
            cells.append(cell({**figures, **time}, "time", "ratio") if figures else "-")
        rows.append([count(result["size"]), *cells])
    yield from table([f"µs a step (times ours), {TITLES[axis]}", *names], rows)


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
    yield from (*table(heads, break_rows(record, axis)), "")
    heads = [f"curve, {axis}", f"µs with one {item}", "twice that at", "second thread pays from"]
    yield from (*table(heads, once_rows(record, axis)), "")
    for levels in (RATIOS, SHARES):
        heads = [f"time / ours, {axis}", *(f"at least {level:g}" for level in levels)]
        yield from (*table(heads, ratio_rows(record, axis, levels)), "")


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
    yield from table([f"time of 1 thread / of {record['settings']['threads']}, {TITLES[axis]}", *names], rows)
