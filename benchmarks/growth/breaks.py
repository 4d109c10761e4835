"""Break points of curves of time over size, found in the measurements.

A curve is cut into *pieces*, in each of which the time is a fixed part and a cost per item, ``a + b * size``. A piece
describes its sizes, both ends included, if it meets every median within `CLOSE` of it, or within half the interquartile
range where that is wider. Of all ways to cut the curve at measured sizes into such pieces we take one with the fewest,
and among those the closest one (sum of squares). The size at which one piece ends and the next begins is a **break
point**: from there on the cost per item, `b`, is another.

Beside them stand: the size at which a step takes twice as long as with one item, where its growth has outweighed its
fixed cost; the size from which on a second thread pays, by at least `PAYS`, there and at all larger sizes; and the
sizes for which torch takes at least 10, 5, 2, ... times as long as ours, interpolated between neighbours.
A cache is named beside a break point if what a step touches outgrows it within a factor of two of there: 16 bytes an
element, or what tensors with all that belongs to them take of memory where there are many.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise, takewhile
from typing import Any

import numpy as np

from benchmarks.growth.arena import RESIDENT
from benchmarks.shared.files import Record as Result
from benchmarks.shared.measure import Spread
from benchmarks.shared.variants import LIMIT, OURS

CLOSE = 0.15
PAYS = 1.1
RATIOS = (50.0, 20.0, 10.0, 5.0, 2.0, 1.5, 1.2, 1.1)
SHARES = (0.5, 0.8, 0.9)  # of the streaming limit in our time


def time_of(result: Result, name: str, threads: int | None = None) -> Spread:
    """The time of a variant in a result, with a number of threads or the one that stands for it."""
    figures = result["variants"][name]
    return figures["time"][str(threads or figures["threads"])]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Piece:
    first: int  # its smallest size
    last: int  # its largest
    fixed: float  # a, in microseconds; negative where an item costs more than those before it did
    each: float  # b, in microseconds
    worst: float  # the largest difference from a median, in units of what is allowed
    square: float  # sum of the squares of all


def fit(sizes: Sequence[int], medians: Sequence[float], allowed: Sequence[float]) -> Piece:
    n, t, scale = (np.array(values, dtype=float) for values in (sizes, medians, allowed))
    each, fixed = np.polyfit(n, t, 1, w=1 / scale)
    off = np.abs((fixed + each * n - t) / scale)
    return Piece(sizes[0], sizes[-1], float(fixed), float(each), float(off.max()), float((off**2).sum()))


def pieces(sizes: Sequence[int], times: Sequence[Spread]) -> list[Piece]:
    """Cuts a curve of microseconds over ascending sizes into as few pieces as describe it; neighbours share a size."""
    medians = [time["median"] for time in times]
    allowed = [max(CLOSE * time["median"], (time["high"] - time["low"]) / 2) for time in times]
    best: list[tuple[int, float, list[Piece]]] = [(0, 0.0, [])]  # for the curve up to each size
    for end in range(1, len(sizes)):
        ways = []
        for begin, (count, square, before) in enumerate(best):
            part = slice(begin, end + 1)
            piece = fit(sizes[part], medians[part], allowed[part])
            if piece.worst <= 1 or begin == end - 1:
                ways.append((count + 1, square + piece.square, [*before, piece]))
        best.append(min(ways, key=lambda way: way[:2]))
    return best[-1][2]


def crossing(sizes: Sequence[int], values: Sequence[float], level: float) -> float | None:
    """The first size at which `values` have risen to `level`, between neighbours along a power law."""
    if values[0] >= level:
        return float(sizes[0])
    for (n, v), (m, w) in pairwise(zip(sizes, values, strict=True)):
        if w >= level:
            return float(n * (m / n) ** (math.log(level / v) / math.log(w / v)))
    return None


def stretches(sizes: Sequence[int], values: Sequence[float], level: float) -> list[tuple[float, float]]:
    """From where to where `values` are at least `level`."""
    ends = [float(sizes[0])] if values[0] >= level else []  # begins and ends in turn
    for i, (before, after) in enumerate(pairwise(values)):
        if before < level <= after:
            ends.append(crossing(sizes[i : i + 2], (before, after), level) or sizes[i + 1])
        elif after < level <= before:
            ends.append(crossing(sizes[i : i + 2], (1 / before, 1 / after), 1 / level) or sizes[i])
    ends += [float(sizes[-1])] * (len(ends) % 2)
    return list(zip(ends[::2], ends[1::2], strict=True))


def pays_from(sizes: Sequence[int], values: Sequence[float]) -> int | None:
    """The size from which on all values reach `PAYS`."""
    paying = takewhile(lambda pair: pair[1] >= PAYS, reversed(list(zip(sizes, values, strict=True))))
    return min((size for size, _ in paying), default=None)


def outgrown(bytes_touched: float, caches: Mapping[str, int]) -> list[str]:
    """The caches that are no more than a factor of two larger or smaller."""
    return [name for name, size in caches.items() if size / 2 <= bytes_touched <= size * 2]


def curve(results: Sequence[Result], name: str, caches: Mapping[str, int]) -> dict[str, Any]:
    results = [result for result in results if name in result["variants"]]
    sizes, times = [result["size"] for result in results], [time_of(result, name) for result in results]
    medians = [time["median"] for time in times]
    parts = pieces(sizes, times)
    touched = {r["size"]: r["elements"] * RESIDENT if name == LIMIT else r["resident"] for r in results}
    scaling, ratios = ([r["variants"][name][key]["median"] for r in results] for key in ("scaling", "ratio"))
    levels = SHARES if name == LIMIT else () if name == OURS else RATIOS
    return {
        "fixed": medians[0],
        "doubled_at": crossing(sizes, medians, 2 * medians[0]),
        "pieces": [
            asdict(part) | {"touched": touched[part.last], "outgrown": outgrown(touched[part.last], caches)}
            for part in parts
        ],
        "second_thread_pays_from": pays_from(sizes, scaling),
        "ratio_at_least": {str(level): stretches(sizes, ratios, level) for level in levels},
    }


def breaks(record: Result) -> dict[str, dict[str, Any]]:
    """Every curve of a record, by axis and variant; caches are those of all threads together."""
    threads = record["settings"]["threads"]
    caches = {name: cache["bytes"] * (1 if cache["shared"] else threads) for name, cache in record["caches"].items()}
    return {
        axis: {name: curve(results, name, caches) for name in results[0]["variants"]}
        for axis, results in record["axes"].items()
        if len(results) > 1
    }
