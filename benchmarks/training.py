"""One training run, and how its time is taken: whole iterations, or each phase of them."""

import copy
import gc
import statistics
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from measure import Clock
from variants import Variant
from workloads import Task

PHASES = ("zero_grad", "forward", "backward", "step")
WARM_UP = 5


class Trainer:
    """A model in training: its own copy of the task's model, and an optimizer over it."""

    def __init__(self, task: Task, variant: Variant, rule: str, lr: float, zero_grad: str) -> None:
        self.task = task
        self.model = copy.deepcopy(task.model)
        self.optimizer = variant.build(rule, self.model.parameters(), lr)
        self.begin, self.step = variant.loop_calls(self.optimizer, zero_grad)

    def forward(self, iteration: int) -> Tensor:
        """The loss on the batch of this iteration."""
        x, y = self.task.batches[iteration % len(self.task.batches)]
        return self.task.criterion(self.model(x), y)

    def run(self, iterations: int) -> None:
        """Trains."""
        for i in range(iterations):
            self.begin()
            self.forward(i).backward()  # type: ignore[no-untyped-call]
            self.step()

    def time_iterations(self, iterations: int, clock: Clock) -> list[float]:
        """Trains, and reads the clock once per iteration: nothing else is in the loop. In microseconds."""
        begin, forward, step, mark = self.begin, self.forward, self.step, clock.mark
        marks: list[Any] = [mark()]
        for i in range(iterations):
            begin()
            forward(i).backward()  # type: ignore[no-untyped-call]
            step()
            marks.append(mark())
        return clock.between(marks)

    def time_phases(self, iterations: int, clock: Clock) -> dict[str, list[float]]:
        """Trains, and reads the clock after each phase; per phase, microseconds of every iteration."""
        begin, forward, step, mark = self.begin, self.forward, self.step, clock.mark
        marks: list[Any] = [mark()]
        for i in range(iterations):
            begin()
            marks.append(mark())
            loss = forward(i)
            marks.append(mark())
            loss.backward()  # type: ignore[no-untyped-call]
            marks.append(mark())
            step()
            marks.append(mark())
        times = clock.between(marks)
        return {phase: times[k :: len(PHASES)] for k, phase in enumerate(PHASES)}


@dataclass
class Timings:
    """The times of one variant, one figure per round: the median over the iterations of that round.

    Attributes:
        loop: Whole iterations, in microseconds.
        phases: The same for each phase, from runs of their own.
    """

    loop: list[float] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=lambda: {phase: [] for phase in PHASES})

    def add(self, trainer: Trainer, by_phase: bool, iterations: int, clock: Clock) -> None:
        """Takes one more round from a fresh `trainer`, after a few iterations that are not timed."""
        trainer.run(WARM_UP)
        gc.collect()
        if by_phase:
            for phase, times in trainer.time_phases(iterations, clock).items():
                self.phases[phase].append(statistics.median(times))
        else:
            self.loop.append(statistics.median(trainer.time_iterations(iterations, clock)))
