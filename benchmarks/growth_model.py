"""What threads bring: a model with parameters as measured, held against the measurements, and what follows from it.

    time = max(arithmetic * elements / threads, moved / bandwidth(threads)) + fixed + (wake if threads > 1)

arithmetic  microseconds an element in one thread where it is cheapest, that is, where all lies in the nearest caches
moved       28 bytes an element (Adam, fp32)
bandwidth   of the streaming limit in the caches or the memory that hold what a step touches: as measured for one thread
            and for all; for other numbers, in caches that many times that of one thread, in memory the same but no
            more than the machine is stated to have
fixed       of a step of one element in one thread
wake        what a second thread adds to the streaming limit of one element; taken to be the same for more of them
threads     those that take part: of ours one per `GRAIN` elements, of torch's fused all

Times for numbers of threads that were not measured are predictions, and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from statistics import median
from typing import Any

from compare_step import LIMIT
from growth_arena import BYTES, RESIDENT
from growth_time import time_of
from variants import OURS

GRAIN = 32_768  # elements to a thread, docs/design.md
MODELLED = (OURS, "torch-fused")
PAPER_THREADS = (4, 8, 16)
PAPER_MACHINES = {"two channels of DDR5": 80, "eight channels of DDR5": 300}  # GB/s of memory
PAPER_SIZES = (2**16, 2**20, 2**24, 2**28)
MEMORY = "memory"

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Parameters:
    """As measured; see the head of this file. Times in microseconds, bandwidths in bytes per microsecond.

    Attributes:
        arithmetic: By variant.
        fixed: By variant.
        wake: Of all threads.
        bandwidth: By level and number of threads, as a string.
        caches: By level, in order; their bytes, and whether all cores share it.
    """

    arithmetic: Mapping[str, float]
    fixed: Mapping[str, float]
    wake: float
    bandwidth: Mapping[str, Mapping[str, float]]
    caches: Mapping[str, Mapping[str, Any]]

    def level(self, elements: int, threads: int) -> str:
        """The smallest cache, or the memory, that holds what a step touches, with a share for each thread."""
        held = (
            name
            for name, cache in self.caches.items()
            if elements * RESIDENT <= cache["bytes"] * (1 if cache["shared"] else threads) and name in self.bandwidth
        )
        return next(held, MEMORY)

    def bandwidth_of(self, elements: int, threads: int, stated: float | None) -> float:
        """Bytes per microsecond; `stated` is the most that the memory gives."""
        level = self.level(elements, threads)
        known = self.bandwidth[level]
        if stated is None:
            return known.get(str(threads), threads * known["1"])
        return min(threads * known["1"], stated) if level == MEMORY else threads * known["1"]

    def time(self, name: str, elements: int, threads: int, stated: float | None = None) -> float | None:
        """The time of a step of one tensor, in microseconds; None where the bandwidth was not measured."""
        used = threads if name != OURS else min(threads, max(1, elements // GRAIN))
        if self.level(elements, used) not in self.bandwidth:
            return None
        moving = BYTES * elements / self.bandwidth_of(elements, used, stated)
        computing = self.arithmetic[name] * elements / used
        return max(computing, moving) + self.fixed[name] + (self.wake if used > 1 else 0)


def fit(results: Sequence[Result], caches: Mapping[str, Mapping[str, Any]], threads: Sequence[int]) -> Parameters:
    """The parameters from the results of one tensor, from one element on."""
    first, many = results[0], max(threads)
    fixed = {name: time_of(first, name, 1).median for name in MODELLED}
    arithmetic = {
        name: min((time_of(r, name, 1).median - fixed[name]) / r["elements"] for r in results if r["elements"] >= 1024)
        for name in MODELLED
    }
    wake = median(time_of(r, LIMIT, many).median - time_of(r, LIMIT, 1).median for r in results if r["elements"] <= 64)
    everywhere: dict[str, dict[str, float]] = {level: {} for level in (*caches, MEMORY)}
    place = Parameters(arithmetic, fixed, wake, everywhere, caches)
    largest = max((cache["bytes"] for cache in caches.values()), default=0)
    bandwidth: dict[str, dict[str, float]] = {}
    for count in threads:
        still = time_of(first, LIMIT, count).median
        for r in results:
            level, moving = place.level(r["elements"], count), time_of(r, LIMIT, count).median - still
            if r["elements"] >= 1024 and moving > 0 and (level != MEMORY or r["resident"] >= 2 * largest):
                known = bandwidth.setdefault(level, {})
                known[str(count)] = max(known.get(str(count), 0.0), r["moved"] / moving)
    return Parameters(arithmetic, fixed, max(0.0, wake), bandwidth, caches)


def held_against(parameters: Parameters, results: Sequence[Result], threads: Sequence[int]) -> list[dict[str, Any]]:
    """Model and measurement at every size that the model covers."""
    rows = []
    for name, count in product(MODELLED, threads):
        for r in results:
            measured, modelled = time_of(r, name, count).median, parameters.time(name, r["elements"], count)
            if modelled is not None:
                rows.append({"variant": name, "threads": count, "elements": r["elements"], "model": modelled,
                             "measured": measured, "off": modelled / measured})  # fmt: skip
    return rows


def predicted(parameters: Parameters) -> list[dict[str, Any]]:
    """Times for more threads, on machines whose cores and caches are those that were measured."""
    rows = []
    for (machine, stated), name, elements, threads in product(
        PAPER_MACHINES.items(), MODELLED, PAPER_SIZES, PAPER_THREADS
    ):
        modelled = parameters.time(name, elements, threads, stated * 1e3)
        if modelled is not None:
            rows.append({"variant": name, "elements": elements, "threads": threads, "machine": machine,
                         "stated": stated, "time": modelled})  # fmt: skip
    return rows


def model(record: Result) -> dict[str, Any] | None:
    """Parameters, comparison and predictions, where one tensor was measured with one thread and with several."""
    results, threads = record["axes"].get("elements", []), sorted({1, record["settings"]["threads"]})
    if len(results) < 2 or len(threads) < 2 or results[0]["elements"] != 1:
        return None
    parameters = fit(results, record["caches"], threads)
    return {
        "parameters": asdict(parameters),
        "held_against": held_against(parameters, results, threads),
        "predicted": predicted(parameters),
    }
