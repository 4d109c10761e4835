"""Steps one after another, each timed by itself: for what a median alone does not show."""

import math
import statistics

from benchmarks.shared.arena import Arena
from benchmarks.shared.measure import Call, CpuClock, time_call
from benchmarks.shared.shapes import MODELS

SHORTEST = 3  # steps, even where one takes longer than the limit


def time_series(step: Call, count: int, at_least: float = 0.0, at_most: float = math.inf) -> list[float]:
    """Microseconds of each step of a series of `count` steps.

    It goes on for `at_least` seconds even so, since the scheduler does not share a core by microseconds, and no further
    step begins after `at_most`.
    """
    clock = CpuClock()
    times: list[float] = []
    begin = clock.mark()
    passed = 0.0
    while len(times) < SHORTEST or passed < at_least or (len(times) < count and passed < at_most):
        times.append(time_call(step, clock))
        passed = (clock.mark() - begin) / 1e9
    return times


class Stepper:
    """The steps of several variants of Adam on one set of tensors, for processes that are told by name what to do."""

    def __init__(self, model: str, variants: list[str]) -> None:
        self.arena = Arena(MODELS[model], "adam")
        self.calls = {variant: self.arena.step(variant) for variant in variants}

    def median(self, variant: str, count: int, limit: float) -> float:
        """The median of up to `count` steps, in microseconds, after one that is not counted."""
        self.calls[variant]()
        return statistics.median(time_series(self.calls[variant], count, at_most=limit))
