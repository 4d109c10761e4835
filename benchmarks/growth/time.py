"""Times of steps of one size: variants and numbers of threads in turn, fewer rounds for what is slow."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from benchmarks.growth.arena import BYTES, GrowthArena
from benchmarks.shared.files import Record
from benchmarks.shared.measure import Call, CpuClock, ratio, spread, time_call, time_rounds
from benchmarks.shared.probe import Way, ways
from benchmarks.shared.shapes import Model
from benchmarks.shared.variants import LIMIT, OURS

VARIANTS = ("torch-default", "torch-fused", OURS)
MEASUREMENT = 5e3  # microseconds that one takes, over several calls in a row if need be
MOST_REPEATS = 1000
BUDGET = 0.5  # seconds for each variant and number of threads, as long as that allows of `LEAST_ROUNDS`
LEAST_ROUNDS, MOST_ROUNDS = 3, 15
LARGE = 2**24  # elements beyond which no call warms up, and the streaming limit goes the way of the size before
TRIALS = {2**18: {"trials": 5, "repeats": 10}, LARGE: {"trials": 2, "repeats": 2}}  # of the limit, up to such a size

Key = tuple[str, int]  # a variant or `LIMIT`, and the number of threads


class Probes:
    """The streaming limit for one thread and for several, by the ways found best at the last size."""

    def __init__(self, threads: Sequence[int]) -> None:
        self.ways: dict[int, Sequence[Way]] = {count: tuple(ways(count)) for count in threads}

    def of(self, arena: GrowthArena) -> dict[Key, Call]:
        """A probe of the arena's tensors for each number of threads."""
        elements = arena.model.elements
        trials = next((how for size, how in TRIALS.items() if elements <= size), {})
        probes: dict[Key, Call] = {}
        for threads, last in self.ways.items():
            probe = arena.probe(chosen=last if elements > LARGE else tuple(ways(threads)), **trials)
            self.ways[threads] = [probe.ranking[0]]
            probes[LIMIT, threads] = probe
        return probes


def measure(calls: Mapping[Key, Call], rounds: int, warm: bool = True) -> dict[Key, list[float]]:
    """Times each call once a round, slow ones in the first rounds only."""
    clock, threads = CpuClock(), torch.get_num_threads()
    repeats = dict.fromkeys(calls, 1)

    def before(key: Key) -> None:
        torch.set_num_threads(key[1])
        if repeats[key] > 1:
            calls[key]()

    for key, call in calls.items() if warm else ():
        torch.set_num_threads(key[1])
        took = time_call(call, clock)
        took = took if took > 1e5 * BUDGET else min(time_call(call, clock) for _ in range(3))
        repeats[key] = max(1, min(MOST_REPEATS, int(MEASUREMENT / took)))
    times = time_rounds(calls, rounds, repeats, before=before, seconds=BUDGET, fewest=LEAST_ROUNDS)
    torch.set_num_threads(threads)
    return times


def at_size(model: Model, pool: dict[str, Tensor] | None, names: Sequence[str], probes: Probes, rounds: int) -> Record:
    """Checks the variants on tensors of one size, measures them, and returns the result as a JSON object.

    "threads" is the number whose times stand for a variant: all, but for the streaming limit the faster.
    """
    arena = GrowthArena(model, pool)
    optimizers = {name: arena.optimizer(name) for name in names}
    verdicts = arena.check(optimizers)
    calls = {(name, k): optimizer.step for name, optimizer in optimizers.items() for k in probes.ways}
    times = measure(calls | probes.of(arena), rounds, warm=model.elements <= LARGE)
    most = max(probes.ways)
    variants: dict[str, Any] = {}
    for name in dict.fromkeys(name for name, _ in times):
        spreads = {threads: spread(values) for (n, threads), values in times.items() if n == name}
        threads = min(spreads, key=lambda k: spreads[k]["median"]) if name == LIMIT else most
        variants[name] = {
            "time": {str(k): figures for k, figures in spreads.items()},
            "threads": str(threads),
            "rounds": len(times[name, most]),
            "scaling": ratio(times[name, 1], times[name, most]),
            "ratio": ratio(times[name, threads], times[OURS, most]),
            **(asdict(verdicts[name]) if name in verdicts else {}),
        }
    return {"elements": model.elements, "moved": model.elements * BYTES, "variants": variants}
