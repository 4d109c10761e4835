"""A training: its loop, whole or phase by phase, and whether a variant trains correctly, judged against float64.

Two trainings that differ in the last bit drift apart, exponentially so where the loss is not convex, and in
the end say nothing about one another. So there are two checks, neither of which the drift can blur:

* **rounding**: beside the fp32 run, torch's for-loop optimizer in float64 takes the very gradients that the
  run saw. Both start equal and are fed equal, so what parts them is the optimizer's own rounding, however
  long the run.
* **training**: a whole training in float64 (model, data, torch's for-loop) from the same start, compared
  with after 1, 2, 4, 8, ... steps. Rounding decides when a ReLU first falls on the other side of its kink,
  and from then on errors jump; so the judgement falls at a quarter of the steps for which torch's own
  variants agree on how far fp32 is from float64, within a factor of `AGREEMENT` and no farther than `HORIZON`;
  `correctness.py` says how large an error may be.
"""

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.shared.correctness import Error, within
from benchmarks.shared.measure import Clock
from benchmarks.shared.tails import PLAIN, Tail, phases_of
from benchmarks.shared.variants import REFERENCE, VARIANTS, YARDSTICKS, Variant
from benchmarks.shared.workloads import Task, Workload

PHASES = phases_of(PLAIN)
AGREEMENT = 1.25
HORIZON = 1e-2
CHUNK = 4  # iterations between looks at the time, so that none is within an iteration that is timed
Now = Callable[[], float]  # seconds, as `time.monotonic`


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

    def run(self, iterations: int, until: float = math.inf, now: Now = time.monotonic) -> list[float]:
        """Trains, and returns the losses; no iteration but the first begins later than `until`."""
        losses: list[float] = []
        while len(losses) < iterations and not (losses and now() > until):
            self.begin()
            loss = self.forward(len(losses))
            self.scaled(loss).backward()
            self.step()
            losses.append(loss.item())
        return losses

    def time_iterations(
        self, iterations: int, clock: Clock, until: float = math.inf, now: Now = time.monotonic
    ) -> list[float]:
        """Trains, and reads the clock once per iteration: nothing else is in the loop. In microseconds."""
        begin, forward, scaled, mark = self.begin, self.forward, self.scaled, clock.mark
        calls = [call for _, call in self.tail.calls]
        marks: list[Any] = [mark()]
        for i in range(iterations):
            if i and i % CHUNK == 0 and now() > until:
                break
            begin()
            scaled(forward(i)).backward()
            for call in calls:
                call()
            marks.append(mark())
        return clock.between(marks)

    def time_phases(
        self, iterations: int, clock: Clock, until: float = math.inf, now: Now = time.monotonic
    ) -> dict[str, list[float]]:
        """Trains, and reads the clock after each phase; per phase, microseconds of every iteration.

        Scaling the loss belongs to the backward pass.
        """
        begin, forward, scaled, mark = self.begin, self.forward, self.scaled, clock.mark
        phases = (*PHASES[:3], *(phase for phase, _ in self.tail.calls))
        calls = [call for _, call in self.tail.calls]
        marks: list[Any] = [mark()]
        for i in range(iterations):
            if i and i % CHUNK == 0 and now() > until:
                break
            begin()
            marks.append(mark())
            loss = forward(i)
            marks.append(mark())
            scaled(loss).backward()
            marks.append(mark())
            for call in calls:
                call()
                marks.append(mark())
        times = torch.tensor(clock.between(marks), dtype=torch.float64).view(-1, len(phases))
        of_phase = {phase: [k for k, name in enumerate(phases) if name == phase] for phase in phases}
        return {phase: times[:, columns].sum(dim=1).tolist() for phase, columns in of_phase.items()}


@dataclass
class Record:
    rounding: Error  # against the float64 optimizer that took the same gradients
    training: dict[int, float]  # overall error against the float64 training, by number of steps


@dataclass
class Verdict:
    """The figures behind "correct" for one variant; fields as in `Record`."""

    correct: bool
    rounding: Error
    training: float
    training_steps: int  # at which `training` was judged


def copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [t.detach().clone() for t in tensors]


@dataclass
class TrainingCheck:
    """Trains one workload with one optimizer, in float64 and in every variant, and compares."""

    workload: Workload
    rule: str
    device: torch.device
    most: int  # iterations
    tail: str = PLAIN  # what follows the backward pass; float64 needs no scale
    seconds: float = math.inf  # when the float64 training ends; each other may then take 4 times as long
    now: Now = time.monotonic

    def __post_init__(self) -> None:
        self.lr, self.unscaled_tail = self.workload.lr[self.rule], self.tail.replace("+amp", "")
        self.task = self.workload.task(self.device)
        self.exact: dict[int, list[Tensor]] = {}
        wide = self.task.to(self.device, torch.float64)
        trainer = Trainer(wide, REFERENCE, self.rule, self.lr, "separate", self.unscaled_tail)
        self.start = copies(trainer.tail.results())
        end, self.iterations = self.now() + self.seconds, 0
        while self.iterations == 0 or (self.iterations < self.most and self.now() < end):
            trainer.begin()
            trainer.forward(self.iterations).backward()  # type: ignore[no-untyped-call]
            trainer.step()
            self.iterations += 1
            if self.iterations & (self.iterations - 1) == 0:
                self.exact[self.iterations] = copies(trainer.tail.results())

    def train(self, variant: str) -> Record | None:
        """Trains in fp32 with the float64 optimizer alongside; None if there is no time for it."""
        trainer = Trainer(self.task, VARIANTS[variant], self.rule, self.lr, "separate", self.tail)
        params = list(trainer.model.parameters())
        shadow = [nn.Parameter(p.detach().double()) for p in params]
        exact = Tail(self.unscaled_tail, REFERENCE, self.rule, nn.ParameterList(shadow), self.lr)
        training: dict[int, float] = {}
        end = self.now() + 4 * self.seconds
        for step in range(1, self.iterations + 1):
            trainer.begin()
            trainer.scaled(trainer.forward(step - 1)).backward()
            for p, s in zip(params, shadow, strict=True):
                s.grad = None if p.grad is None else p.grad.double() / trainer.tail.scale
            trainer.step()
            exact.run()
            if step in self.exact:
                training[step] = Error.of(trainer.tail.results(), self.exact[step], self.start).overall
            if step < self.iterations and self.now() > end:
                return None
        rounding = Error.of(trainer.tail.results(), exact.results(), self.start)
        return Record(rounding, training)

    def judge(self, records: Mapping[str, Record | None]) -> dict[str, Verdict]:
        """The verdict on each of `records` that has ended, as far as one of the other `YARDSTICKS` has."""
        ended = {name: record for name, record in records.items() if record is not None}
        measures = {name: ended[name] for name in YARDSTICKS if name in ended}

        def agreed(step: int) -> bool:
            values = [measure.training[step] for measure in measures.values()]
            return max(values) <= min(HORIZON, AGREEMENT * min(values))

        # The number of steps after which to compare with the float64 training, see the head of this file.
        at = max(1, max(takewhile(agreed, self.exact), default=1) // 4) if measures else 1
        figures: tuple[Callable[[Record], float], ...] = (
            lambda r: r.rounding.overall,
            lambda r: r.rounding.worst,
            lambda r: r.training[at],
        )
        verdicts = {}
        for name, r in ended.items():
            if others := [measure for other, measure in measures.items() if other != name]:
                correct = all(within(figure(r), map(figure, others)) for figure in figures)
                verdicts[name] = Verdict(correct, r.rounding, r.training[at], at)
        return verdicts
