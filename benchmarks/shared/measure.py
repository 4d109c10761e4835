"""What every benchmark shares: clocks, interleaved rounds, medians with spread, the record of the machine."""

import datetime
import itertools
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

import fusedoptim

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """A median with its interquartile range.

    Attributes:
        median: The middle of the values.
        low: First quartile.
        high: Third quartile.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarises `values`, at least one."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """The ratio within each round, summarised: what slows a whole round down cancels out."""
    return Spread.of([a / b for a, b in zip(numerator, denominator, strict=True)])


def interleaved(items: Sequence[T], rounds: int | Mapping[T, int], seed: int = 0) -> Iterator[T]:
    """Yields every item once per round, each round in another order, so that none always runs first.

    Where `rounds` has a number for each, an item that has had its rounds is not in those that follow.
    """
    shuffle = random.Random(seed).shuffle
    counts = rounds if isinstance(rounds, Mapping) else dict.fromkeys(items, rounds)
    for i in range(max(counts.values(), default=0)):
        order = [item for item in items if counts[item] > i]
        shuffle(order)
        yield from order


class Clock(Protocol):
    """Reads marks off a clock; the time between marks is asked for only when all have been read."""

    def mark(self) -> Any:
        """Reads the clock."""

    def between(self, marks: Sequence[Any]) -> list[float]:
        """The time from each mark to the next, in microseconds."""


class CpuClock:
    """`time.perf_counter_ns`: work on the CPU is done when the call returns."""

    def mark(self) -> int:
        """Reads the clock."""
        return time.perf_counter_ns()

    def between(self, marks: Sequence[int]) -> list[float]:
        """The time from each mark to the next, in microseconds."""
        return [(b - a) / 1e3 for a, b in itertools.pairwise(marks)]


class CudaClock:
    """Events on the current stream: they take their time where the work runs, and nothing waits for them.

    A stretch in which the host is late counts in full, since the next event is recorded only after it.
    """

    def mark(self) -> torch.cuda.Event:
        """Records an event."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def between(self, marks: Sequence[torch.cuda.Event]) -> list[float]:
        """Waits for the last event; the time from each mark to the next, in microseconds."""
        torch.cuda.synchronize()
        return [a.elapsed_time(b) * 1e3 for a, b in itertools.pairwise(marks)]


def clock_for(device: torch.device) -> Clock:
    """The clock that measures work on `device`."""
    return CudaClock() if device.type == "cuda" else CpuClock()


def clock_cost_us(clock: Clock, reads: int = 2000) -> float:
    """What one reading of the clock costs, in microseconds: the median gap between consecutive marks."""
    return statistics.median(clock.between([clock.mark() for _ in range(reads)]))


def time_call(call: Callable[[], object], clock: Clock, repeats: int = 1) -> float:
    """The time of one call in microseconds, the mean of `repeats` calls in a row."""
    begin = clock.mark()
    for _ in range(repeats):
        call()
    return clock.between([begin, clock.mark()])[0] / repeats


def cpu_name() -> str:
    """The processor's name for itself, where the system tells."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def caches() -> dict[str, dict[str, Any]]:
    """The first core's caches for data by level, where the system tells: their bytes, and whether cores share them."""
    core = Path("/sys/devices/system/cpu/cpu0")
    found = {}
    for place in sorted(core.glob("cache/index*")):
        kind, level, size, users = (
            (place / name).read_text().strip() for name in ("type", "level", "size", "shared_cpu_list")
        )
        if kind != "Instruction" and size.endswith("K"):
            shared = users not in ("0", (core / "topology/thread_siblings_list").read_text().strip())
            found[f"L{level}"] = {"bytes": int(size[:-1]) * 1024, "shared": shared}
    return found


def machine_info(device: torch.device) -> dict[str, Any]:
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
    if device.type == "cuda":
        info["gpu"] = torch.cuda.get_device_name(device)
        info["cuda"] = torch.version.cuda
    return info
