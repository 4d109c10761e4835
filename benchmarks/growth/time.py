"""Times of steps of one size: variants in turn, fewer rounds for what is slow."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.growth.arena import BYTES, GrowthArena
from benchmarks.shared.files import Record
from benchmarks.shared.measure import Call, CpuClock, ratio, spread, time_call, time_rounds
from benchmarks.shared.probe import Probe, Way
from benchmarks.shared.shapes import Model
from benchmarks.shared.variants import LIMIT, OURS

VARIANTS = (OURS, "torch-default", "torch-fused")
MEASUREMENT = 5e3  # microseconds that one takes, over several calls in a row if need be
MOST_REPEATS = 1000
BUDGET = 0.5  # seconds for each variant, as long as that allows of `LEAST_ROUNDS`
LEAST_ROUNDS, MOST_ROUNDS = 3, 15
LARGE = 2**24  # elements beyond which no call warms up, and the streaming limit goes the way of the size before


def probe_of(arena: GrowthArena, last: Sequence[Way] | None) -> Probe:
    """The streaming limit of the arena's tensors, by the way found best there or, if they are large, at the last."""
    elements = arena.model.elements
    few = {"trials": 2, "repeats": 2} if elements > 2**18 else {"repeats": 10}
    return arena.probe(chosen=last if elements > LARGE else None, **few)


def measure(calls: Mapping[str, Call], rounds: int, warm: bool = True) -> dict[str, list[float]]:
    """Times each call once a round, slow ones in the first rounds only."""
    clock = CpuClock()
    repeats = dict.fromkeys(calls, 1)
    for name, call in calls.items() if warm else ():
        took = time_call(call, clock)
        took = took if took > 1e5 * BUDGET else min(time_call(call, clock) for _ in range(3))
        repeats[name] = max(1, min(MOST_REPEATS, int(MEASUREMENT / took)))

    def before(name: str) -> None:
        if repeats[name] > 1:
            calls[name]()

    return time_rounds(calls, rounds, repeats, before=before, seconds=BUDGET, fewest=LEAST_ROUNDS)


def at_size(model: Model, names: Sequence[str], rounds: int, last: Sequence[Way] | None) -> tuple[Record, list[Way]]:
    """The result of one size as a JSON object, whose steps are checked; and the best way of the streaming limit."""
    arena = GrowthArena(model)
    optimizers = {name: arena.optimizer(name) for name in names}
    verdicts = arena.check(optimizers)
    probe = probe_of(arena, last)
    calls: dict[str, Call] = {name: optimizer.step for name, optimizer in optimizers.items()} | {LIMIT: probe}
    times = measure(calls, rounds, warm=model.elements <= LARGE)
    variants: dict[str, Any] = {
        name: {
            "time": spread(values),
            "rounds": len(values),
            "ratio": ratio(values, times[OURS]),
            **(asdict(verdicts[name]) if name in verdicts else {}),
        }
        for name, values in times.items()
    }
    return {"elements": model.elements, "moved": model.elements * BYTES, "variants": variants}, probe.ranking[:1]
