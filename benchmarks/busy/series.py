"""Steps one after another, each timed by itself: for what a median alone does not show."""

import statistics
from collections.abc import Callable

from benchmarks.shared.arena import Arena
from benchmarks.shared.measure import CpuClock
from benchmarks.shared.shapes import MODELS

SHORTEST = 3  # steps, even where one takes longer than the limit


def time_series(
    step: Callable[[], object],
    count: int,
    at_least: float = 0.0,
    at_most: float = float("inf"),
    before: Callable[[], object] | None = None,
) -> list[float]:
    """Microseconds of each step of a series.

    Args:
        step: What is timed.
        count: How many are wanted.
        at_least: Seconds for which the series goes on even so: the scheduler does not share a core by microseconds.
        at_most: Seconds after which no further one begins.
        before: What is called before each, and not timed.
    """
    clock = CpuClock()
    times: list[float] = []
    begin = clock.mark()
    passed = 0.0
    while len(times) < SHORTEST or passed < at_least or (len(times) < count and passed < at_most):
        if before:
            before()
        marks = [clock.mark()]
        step()
        marks.append(clock.mark())
        times += clock.between(marks)
        passed = (marks[1] - begin) / 1e9
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
