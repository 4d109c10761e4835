"""Times of steps of one size: variants and numbers of threads in turn, fewer rounds for what is slow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.growth.arena import BYTES, GrowthArena
from benchmarks.shared.arena import StepVerdict
from benchmarks.shared.measure import CpuClock, Spread, interleaved, ratio, time_call
from benchmarks.shared.probe import Probe, Way, ways
from benchmarks.shared.variants import OURS
from benchmarks.step.run import LIMIT

VARIANTS = ("torch-default", "torch-fused", OURS)
MEASUREMENT = 5e3  # microseconds that one takes, over several calls in a row if need be
MOST_REPEATS = 1000
BUDGET = 0.5e6  # microseconds for each variant and number of threads, as long as that allows of `LEAST_ROUNDS`
LEAST_ROUNDS, MOST_ROUNDS = 3, 15
LARGE = 2**24  # elements beyond which no call warms up, and the streaming limit goes the way of the size before
TRIALS = {2**18: {"trials": 5, "repeats": 10}, LARGE: {"trials": 2, "repeats": 2}}  # of the limit, up to such a size

Key = tuple[str, int]  # a variant or `LIMIT`, and the number of threads
Times = Mapping[Key, Sequence[float]]  # microseconds per call, one figure per round


class Probes:
    """The streaming limit for one thread and for several, by the ways found best at the last size."""

    def __init__(self, threads: Sequence[int]) -> None:
        self.ways: dict[int, Sequence[Way]] = {count: tuple(ways(count)) for count in threads}

    def of(self, arena: GrowthArena) -> dict[Key, Callable[[], object]]:
        """A probe of the arena's tensors for each number of threads."""
        elements = arena.model.elements
        trials = next((how for size, how in TRIALS.items() if elements <= size), {})
        probes: dict[Key, Callable[[], object]] = {}
        for threads, last in self.ways.items():
            probe: Probe = arena.probe(chosen=last if elements > LARGE else tuple(ways(threads)), **trials)
            self.ways[threads] = [probe.ranking[0]]
            probes[LIMIT, threads] = probe
        return probes


def empty_call() -> Probe:
    """The call of a probe that has nothing to do: from Python into compiled code and back."""
    return Probe("step", [[]] * 4, chosen=[next(ways(1))])


def warm_up(call: Callable[[], object]) -> float:
    """Calls it until its time says something, and returns that, in microseconds."""
    clock = CpuClock()
    first = time_call(call, clock)
    return first if first > BUDGET / 10 else min(time_call(call, clock) for _ in range(3))


def measure(calls: Mapping[Key, Callable[[], object]], rounds: int, warm: bool = True) -> dict[Key, list[float]]:
    """Times each call once a round, slow ones in the first rounds only."""
    clock, before = CpuClock(), torch.get_num_threads()
    repeats = {}
    for key, call in calls.items():
        torch.set_num_threads(key[1])
        repeats[key] = max(1, min(MOST_REPEATS, int(MEASUREMENT / warm_up(call)))) if warm else 1
    times: dict[Key, list[float]] = {key: [] for key in calls}
    for key in interleaved(list(calls), rounds):
        if len(times[key]) < LEAST_ROUNDS or sum(times[key]) * repeats[key] < BUDGET:
            torch.set_num_threads(key[1])
            if repeats[key] > 1:
                calls[key]()
            times[key].append(time_call(calls[key], clock, repeats[key]))
    torch.set_num_threads(before)
    return times


def common(a: Sequence[float], b: Sequence[float]) -> Spread:
    """The ratio within the rounds that both took part in."""
    count = min(len(a), len(b))
    return ratio(a[:count], b[:count])


def result_of(arena: GrowthArena, times: Times, verdicts: Mapping[str, StepVerdict]) -> dict[str, Any]:
    """What was measured of one size, as a JSON object; times in microseconds.

    "threads" is the number whose times stand for a variant: all, but for the streaming limit the faster.
    """
    most = max(threads for _, threads in times)
    variants: dict[str, Any] = {}
    for name in dict.fromkeys(name for name, _ in times):
        spreads = {threads: Spread.of(values) for (n, threads), values in times.items() if n == name}
        threads = min(spreads, key=lambda k: spreads[k].median) if name == LIMIT else most
        variants[name] = {
            "time": {str(k): asdict(spread) for k, spread in spreads.items()},
            "threads": str(threads),
            "rounds": len(times[name, most]),
            "scaling": asdict(common(times[name, 1], times[name, most])),
            "ratio": asdict(common(times[name, threads], times[OURS, most])),
        }
        if name in verdicts:
            variants[name] |= asdict(verdicts[name])
    elements = arena.model.elements
    return {"elements": elements, "moved": elements * BYTES, "variants": variants}


def time_of(result: Mapping[str, Any], name: str, threads: int | None = None) -> Spread:
    """The time of a variant in such a result, if need be with a number of threads that does not stand for it."""
    figures = result["variants"][name]
    return Spread(**figures["time"][str(threads or figures["threads"])])
