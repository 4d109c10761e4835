"""A workload trained by every variant in turn, within a time: times by phase, ratios, and whether it was correct.

Rounds interleave the variants in changing order; in each round a variant trains twice from the start, once with the
clock read once per iteration ("loop") and once with it read after each phase. A figure is the median over rounds of the
median over iterations; a ratio is the median of the ratios within the rounds. A run that would take longer than it may
has fewer iterations, and is then its variant's last: the figures call it "unfinished".
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

import torch

from benchmarks.shared.measure import Clock, clock_for, interleaved, nothing, ratio, spread
from benchmarks.shared.tails import PLAIN, phases_of
from benchmarks.shared.training import PHASES, Now, Trainer, TrainingCheck, Verdict
from benchmarks.shared.variants import OURS, OURS_CALLS, VARIANTS, YARDSTICKS
from benchmarks.shared.workloads import WORKLOADS

WARM_UP = 5  # iterations


@dataclass
class Timings:
    """The times of one variant in microseconds, one figure per round: the median over the iterations of that round."""

    tail: str = PLAIN
    loop: list[float] = field(default_factory=list)  # whole iterations
    phases: dict[str, list[float]] = field(default_factory=dict)  # each phase, from runs of their own
    around: list[float] = field(default_factory=list)  # all phases together that follow the backward pass
    fewest: int | None = None  # iterations of a run that was stopped for want of time

    def add(
        self, trainer: Trainer, by_phase: bool, iterations: int, clock: Clock, seconds: float = math.inf,
        now: Now = time.monotonic,
    ) -> None:  # fmt: skip
        """Takes one more round from a fresh `trainer`, after a few iterations that are not timed."""
        end = now() + seconds
        trainer.run(WARM_UP, end - seconds / 2, now)
        gc.collect()
        if by_phase:
            times = trainer.time_phases(iterations, clock, end, now)
            medians = {phase: statistics.median(ts) for phase, ts in times.items()}
            for phase in phases_of(self.tail):  # those of others are nothing where the step does it all
                self.phases.setdefault(phase, []).append(medians.get(phase, 0.0))
            self.around.append(sum(medians.values()) - sum(medians[phase] for phase in PHASES[:3]))
            count = len(times[PHASES[0]])
        else:
            whole = trainer.time_iterations(iterations, clock, end, now)
            self.loop.append(statistics.median(whole))
            count = len(whole)
        if count < iterations:
            self.fewest = min(count, self.fewest or count)


@dataclass
class TimedTraining:
    name: str  # a key of `WORKLOADS`
    rule: str  # a key of `RULES`
    variants: Sequence[str]  # those that are timed
    rounds: int  # of each
    length: int | None = None  # iterations of a run; the workload's own if None
    tail: str = PLAIN  # what follows the backward pass
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    seconds: float = math.inf  # what one run may take, of rounds or of the check
    now: Now = time.monotonic
    clock: Clock | None = None  # the device's if None

    def __post_init__(self) -> None:
        self.workload = WORKLOADS[self.name]
        self.iterations = self.length or self.workload.iterations
        # There, those that make the calls of torch's loop would be ours.
        names = [name for name in self.variants if self.tail != PLAIN or name != OURS_CALLS]
        names = [name for name in names if VARIANTS[name].has(self.rule)]
        self.trained = list(dict.fromkeys((*(name for name in YARDSTICKS if VARIANTS[name].has(self.rule)), *names)))
        self.timings = {name: Timings(self.tail) for name in names}

    def run(self, first: Callable[[dict[str, Any]], object] = nothing) -> dict[str, Any]:
        """The result as a JSON object; `first` is called with that of the first round."""
        task, clock = self.workload.task(self.device), self.clock or clock_for(self.device)
        for i, (name, by_phase) in enumerate(interleaved(list(product(self.timings, (False, True))), self.rounds)):
            timings = self.timings[name]
            if i < 2 * len(self.timings) or timings.fewest is None:
                lr = self.workload.lr[self.rule]
                trainer = Trainer(task, VARIANTS[name], self.rule, lr, "separate", self.tail)
                timings.add(trainer, by_phase, self.iterations, clock, self.seconds, self.now)
            if i + 1 == 2 * len(self.timings):
                first(self.result({}))
        how = self.rule, self.device, self.iterations, self.tail, self.seconds, self.now
        check = TrainingCheck(self.workload, *how)
        return self.result(check.judge({name: check.train(name) for name in self.trained}))

    def result(self, verdicts: dict[str, Verdict]) -> dict[str, Any]:
        variants = {}
        ours = self.timings.get(OURS)
        for name, timings in self.timings.items():
            figures: dict[str, Any] = asdict(verdicts[name]) if name in verdicts else {"correct": None}
            figures["phases"] = {phase: spread(times) for phase, times in timings.phases.items()}
            figures["loop"] = spread(timings.loop)
            if ours:
                ratios = ratio(timings.loop, ours.loop), ratio(timings.around, ours.around)
                figures |= dict(zip(("loop_ratio", "step_ratio"), ratios, strict=True))
            if timings.fewest:
                rounds = f"{len(timings.loop)} of {self.rounds} rounds"
                figures["unfinished"] = f"{rounds}, {timings.fewest} of {self.iterations} iterations"
            variants[name] = figures
        return {
            "workload": self.name,
            "optimizer": self.rule,
            "tail": self.tail,
            "lr": self.workload.lr[self.rule],
            "iterations": self.iterations,
            "variants": variants,
        }
