"""What threads bring: a model with parameters as measured, held against the measurements, and what follows from it.

    time = max(arithmetic * elements / threads, moved / bandwidth(threads)) + fixed + (wake if threads > 1)

arithmetic  time per element of one thread where that is least: all lies in the nearest caches
moved       28 bytes per element (Adam, fp32)
bandwidth   that of the streaming limit at this size, as measured with one thread and with all. For other numbers it is
            that many times that of one thread, which finds its share in its own cache if this holds it; in memory it
            is no more than the machine is stated to have. In memory are the sizes at which one thread has no more
            than `NEAR` times the bandwidth it has at the largest
fixed       time of a step of one element in one thread
wake        what a second thread adds to the streaming limit of a few elements; taken to be the same for more threads
threads     those that take part: of ours one per `GRAIN` elements, of torch's fused all

Times for numbers of threads that were not measured are predictions, and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from statistics import median
from typing import Any

import numpy as np

from benchmarks.growth.arena import BYTES, RESIDENT
from benchmarks.growth.breaks import time_of
from benchmarks.shared.files import Record as Result
from benchmarks.shared.variants import LIMIT, OURS

GRAIN = 32_768  # elements to a thread, docs/design.md
MODELLED = (OURS, "torch-fused")
NEAR = 1.25
FEW = 64  # elements, up to which nothing but calling and waking takes time
PAPER_THREADS = (4, 8, 16)
PAPER_MACHINES = {"two channels of DDR5": 80, "eight channels of DDR5": 300}  # GB/s of memory
PAPER_SIZES = (2**16, 2**20, 2**24, 2**28)


@dataclass(frozen=True)
class Parameters:
    """As measured; see the head of this file. Times in microseconds, bandwidths in bytes per microsecond."""

    arithmetic: Mapping[str, float]  # by variant
    fixed: Mapping[str, float]  # by variant
    wake: float  # of all threads
    sizes: Sequence[int]  # numbers of elements, ascending
    bandwidth: Mapping[int, Sequence[float]]  # by number of threads, at each of `sizes`
    own: int  # bytes of the largest cache that each core has for itself

    def bandwidth_of(self, elements: int, threads: int, stated: float | None) -> float:
        """Bytes per microsecond: as measured, or as predicted for a memory that gives `stated` of them."""
        measured = self.bandwidth[threads if stated is None else 1]
        share = elements / threads
        at = share if stated is not None and share * RESIDENT <= self.own else elements
        found = float(np.exp(np.interp(np.log(at), np.log(self.sizes), np.log(measured))))
        if stated is None:
            return found
        return min(threads * found, stated) if found <= NEAR * measured[-1] else threads * found

    def time(self, name: str, elements: int, threads: int, stated: float | None = None) -> float:
        used = threads if name != OURS else min(threads, max(1, elements // GRAIN))
        moving = BYTES * elements / self.bandwidth_of(elements, used, stated)
        computing = self.arithmetic[name] * elements / used
        return max(computing, moving) + self.fixed[name] + (self.wake if used > 1 else 0.0)


def fit(results: Sequence[Result], caches: Mapping[str, Mapping[str, Any]], threads: Sequence[int]) -> Parameters:
    """The parameters from the results of one tensor, from few elements on."""
    few = [r for r in results if r["elements"] <= FEW]
    more = [r for r in results if r["elements"] > FEW]
    still = {count: median(time_of(r, LIMIT, count)["median"] for r in few) for count in threads}
    fixed = {name: median(time_of(r, name, 1)["median"] for r in few) for name in MODELLED}

    def arithmetic(name: str) -> float:
        costs = [(time_of(r, name, 1)["median"] - fixed[name], r["elements"]) for r in more]
        return min((cost / elements for cost, elements in costs if cost > fixed[name]), default=0.0)

    def bandwidth(result: Result, count: int) -> float:
        time = time_of(result, LIMIT, count)["median"]
        return float(result["moved"] / max(time - still[count], 0.01 * time))

    return Parameters(
        {name: arithmetic(name) for name in MODELLED},
        fixed,
        max(0.0, still[max(threads)] - still[1]),
        [r["elements"] for r in more],
        {count: [bandwidth(r, count) for r in more] for count in threads},
        max((cache["bytes"] for cache in caches.values() if not cache["shared"]), default=0),
    )


def predicted(parameters: Parameters) -> list[dict[str, Any]]:
    """Times for more threads, on machines whose cores and caches are those that were measured."""
    sizes = [size for size in PAPER_SIZES if size <= parameters.sizes[-1]]
    return [
        {"variant": name, "elements": elements, "threads": threads, "machine": machine, "stated": stated,
         "time": parameters.time(name, elements, threads, stated * 1e3)}
        for (machine, stated), name, elements, threads in product(
            PAPER_MACHINES.items(), MODELLED, sizes, PAPER_THREADS)
    ]  # fmt: skip


def model(record: Result) -> dict[str, Any] | None:
    """Parameters, comparison and predictions, where one tensor was measured with one thread and with several."""
    results, threads = record["axes"].get("elements", []), sorted({1, record["settings"]["threads"]})
    if len(threads) < 2 or not results or results[0]["elements"] > FEW or results[-1]["elements"] <= FEW:
        return None
    parameters, held = fit(results, record["caches"], threads), []
    for name, count, r in product(MODELLED, threads, results):
        measured, modelled = time_of(r, name, count)["median"], parameters.time(name, r["elements"], count)
        held.append({"variant": name, "threads": count, "elements": r["elements"], "model": modelled,
                     "measured": measured, "off": modelled / measured})  # fmt: skip
    return {"parameters": asdict(parameters), "held_against": held, "predicted": predicted(parameters)}
