"""What every question shares: clocks, interleaved rounds that end in time, medians with quartiles, the machine."""

import datetime
import itertools
import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

import fusedoptim

K = TypeVar("K")
V = TypeVar("V")
Spread = dict[str, float]  # "median", and the first and third quartile as "low" and "high"
Call = Callable[[], object]


def nothing(*_: object) -> None:
    """Stands for a call where there is nothing to do."""


def in_turn(*calls: Call) -> None:
    for call in calls:
        call()


def spread(values: Sequence[float]) -> Spread:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": middle, "low": low, "high": high}


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """The ratio within each round that both took part in: what slows a whole round down cancels out."""
    return spread([a / b for a, b in zip(numerator, denominator, strict=False)])


def interleaved(items: Iterable[K], rounds: int, seed: int = 0) -> Iterator[K]:
    """Yields every item once per round, each round in another order, so that none always runs first."""
    order, generator = list(items), random.Random(seed)
    for _ in range(rounds):
        yield from generator.sample(order, len(order))


def in_rounds(items: Iterable[K], rounds: int, take: Callable[[K], V]) -> dict[K, list[V]]:
    """What is taken of every item, once per round, in changing order."""
    found: dict[K, list[V]] = {item: [] for item in items}
    for item in interleaved(found, rounds):
        found[item].append(take(item))
    return found


class Clock(Protocol):
    """Reads marks off a clock; the microseconds from each mark to the next are asked for when all have been read."""

    def mark(self) -> Any: ...
    def between(self, marks: Sequence[Any]) -> list[float]: ...


class CpuClock:
    """`time.perf_counter_ns`: work on the CPU is done when the call returns."""

    def mark(self) -> int:
        return time.perf_counter_ns()

    def between(self, marks: Sequence[int]) -> list[float]:
        return [(b - a) / 1e3 for a, b in itertools.pairwise(marks)]


class CudaClock:
    """Events on the current stream: they take their time where the work runs, and nothing waits for them.

    A stretch in which the host is late counts in full, since the next event is recorded only after it.
    """

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def between(self, marks: Sequence[torch.cuda.Event]) -> list[float]:
        torch.cuda.synchronize()
        return [a.elapsed_time(b) * 1e3 for a, b in itertools.pairwise(marks)]


def clock_for(device: torch.device) -> Clock:
    return CudaClock() if device.type == "cuda" else CPU_CLOCK


CPU_CLOCK = CpuClock()


def time_call(call: Call, repeats: int = 1, clock: Clock = CPU_CLOCK) -> float:
    """The time of one call in microseconds, the mean of `repeats` calls in a row."""
    begin = clock.mark()
    for _ in range(repeats):
        call()
    return clock.between([begin, clock.mark()])[0] / repeats


def time_rounds(
    calls: Mapping[K, Call],
    rounds: int,
    repeats: int | Mapping[K, int] = 1,
    *,
    before: Callable[[K], object] = nothing,
    warm_up: int = 0,
    seconds: float = math.inf,
    fewest: int = 1,
    clock: Clock = CPU_CLOCK,
) -> dict[K, list[float]]:
    """Microseconds of a call of each, one figure per round.

    Args:
        calls: What is timed, in changing order.
        rounds: How often.
        repeats: How many calls in a row make a figure.
        before: Called with the key before each figure, untimed.
        warm_up: Calls of each before the first round.
        seconds: What one key may take in all. Then it is in no round more, after `fewest`, and warms up no longer; a
            figure that would take longer by itself has fewer calls. A busy machine may take 200 times as long.
        fewest: Rounds that every key is in.
        clock: The processor's, or a device's.
    """
    times: dict[K, list[float]] = {key: [] for key in calls}
    count = {key: repeats if isinstance(repeats, int) else repeats[key] for key in calls}
    spent = dict.fromkeys(calls, 0.0)
    for key, call in calls.items():
        for _ in range(warm_up):
            if spent[key] < 1e6 * seconds:
                before(key)
                spent[key] += (took := time_call(call, clock=clock))
                count[key] = max(1, min(count[key], int(1e6 * min(seconds, 1e6) / max(took, 1e-3))))
    for key in interleaved(calls, rounds):
        if len(times[key]) < fewest or spent[key] < 1e6 * seconds:
            before(key)
            times[key].append(time_call(calls[key], count[key], clock))
            spent[key] += times[key][-1] * count[key]
    return times


def cpu_name() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def machine_info(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What a figure depends on beside the code: the machine, the versions, the thread count, the date."""
    info = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "fusedoptim": fusedoptim.build_info(),
    }
    if torch.device(device).type == "cuda":
        info |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return info
