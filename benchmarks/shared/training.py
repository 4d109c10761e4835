"""One training run, and how its time is taken: whole iterations, or each phase of them."""

import copy
import gc
import statistics
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from benchmarks.shared.measure import Clock
from benchmarks.shared.tails import PLAIN, Tail, phases_of
from benchmarks.shared.variants import Variant
from benchmarks.shared.workloads import Task

PHASES = phases_of(PLAIN)
WARM_UP = 5


class Trainer:
    """A model in training: its own copy of the task's model, and an optimizer over it."""

    def __init__(self, task: Task, variant: Variant, rule: str, lr: float, zero_grad: str, tail: str = PLAIN) -> None:
        self.task = task
        self.model = copy.deepcopy(task.model)
        self.tail = Tail(tail, variant, rule, self.model, lr, zero_grad)
        self.optimizer, self.begin, self.step = self.tail.optimizer, self.tail.begin, self.tail.run
        self.scaled = self.tail.scaler.scale if self.tail.scaler else lambda loss: loss

    def forward(self, iteration: int) -> Tensor:
        """The loss on the batch of this iteration."""
        x, y = self.task.batches[iteration % len(self.task.batches)]
        return self.task.criterion(self.model(x), y)

    def run(self, iterations: int) -> None:
        """Trains."""
        for i in range(iterations):
            self.begin()
            self.scaled(self.forward(i)).backward()
            self.step()

    def time_iterations(self, iterations: int, clock: Clock) -> list[float]:
        """Trains, and reads the clock once per iteration: nothing else is in the loop. In microseconds."""
        begin, forward, scaled, mark = self.begin, self.forward, self.scaled, clock.mark
        calls = [call for _, call in self.tail.calls]
        marks: list[Any] = [mark()]
        for i in range(iterations):
            begin()
            scaled(forward(i)).backward()
            for call in calls:
                call()
            marks.append(mark())
        return clock.between(marks)

    def time_phases(self, iterations: int, clock: Clock) -> dict[str, list[float]]:
        """Trains, and reads the clock after each phase; per phase, microseconds of every iteration.

        Scaling the loss belongs to the backward pass.
        """
        begin, forward, scaled, mark = self.begin, self.forward, self.scaled, clock.mark
        phases = (*PHASES[:3], *(phase for phase, _ in self.tail.calls))
        calls = [call for _, call in self.tail.calls]
        marks: list[Any] = [mark()]
        for i in range(iterations):
            begin()
            marks.append(mark())
            loss = forward(i)
            marks.append(mark())
            scaled(loss).backward()
            marks.append(mark())
            for call in calls:
                call()
                marks.append(mark())
        times = clock.between(marks)
        columns: dict[str, list[list[float]]] = {}
        for k, phase in enumerate(phases):
            columns.setdefault(phase, []).append(times[k :: len(phases)])
        return {phase: [sum(parts) for parts in zip(*some, strict=True)] for phase, some in columns.items()}


@dataclass
class Timings:
    """The times of one variant, one figure per round: the median over the iterations of that round.

    Attributes:
        loop: Whole iterations, in microseconds.
        phases: The same for each phase, from runs of their own.
        around: The same for all phases together that follow the backward pass.
    """

    tail: str = PLAIN
    loop: list[float] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=dict)
    around: list[float] = field(default_factory=list)

    def add(self, trainer: Trainer, by_phase: bool, iterations: int, clock: Clock) -> None:
        """Takes one more round from a fresh `trainer`, after a few iterations that are not timed."""
        trainer.run(WARM_UP)
        gc.collect()
        if by_phase:
            medians = {phase: statistics.median(ts) for phase, ts in trainer.time_phases(iterations, clock).items()}
            for phase in phases_of(self.tail):  # those of others are nothing where the step does it all
                self.phases.setdefault(phase, []).append(medians.get(phase, 0.0))
            self.around.append(sum(medians.values()) - sum(medians[phase] for phase in PHASES[:3]))
        else:
            self.loop.append(statistics.median(trainer.time_iterations(iterations, clock)))
