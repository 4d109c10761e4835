"""Whether a variant trains correctly, judged against float64.

Two trainings that differ in the last bit drift apart, exponentially so where the loss is not convex, and in
the end say nothing about one another. So there are two checks, neither of which the drift can blur:

* **rounding**: beside the fp32 run, torch's for-loop optimizer in float64 takes the very gradients that the
  run saw. Both start equal and are fed equal, so what parts them is the optimizer's own rounding, however
  long the run.
* **training**: a whole training in float64 (model, data, torch's for-loop) from the same start, compared
  with after 1, 2, 4, 8, ... steps. Rounding decides when a ReLU first falls on the other side of its kink,
  and from then on errors jump; so the judgement falls at a quarter of the steps for which torch's own
  variants agree on how far fp32 is from float64, within a factor of `AGREEMENT` and no farther than `HORIZON`.

An error is the distance between parameters as a share of the distance that float64 has moved them;
"rounding" also takes the worst single element, as a share of the farthest move of any. A variant is correct
if each of its errors is at most `TOLERANCE` times the largest among torch's variants (leaving itself out).
torch's fp32 variants order their operations differently, so that they are a sample of what rounding does.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor, nn

from benchmarks.shared.tails import PLAIN, Tail
from benchmarks.shared.training import Trainer
from benchmarks.shared.variants import VARIANTS
from benchmarks.shared.workloads import Workload

TOLERANCE = 2.0
AGREEMENT = 1.25
HORIZON = 1e-2
LOSS_EVERY = 100
REFERENCE = VARIANTS["torch-forloop"]
YARDSTICKS = ("torch-default", "torch-foreach", "torch-fused")


@dataclass(frozen=True)
class Error:
    """How far parameters are from where float64 puts them.

    Attributes:
        overall: 2-norm of the difference over 2-norm of the move.
        worst: Greatest difference of an element over the greatest move of an element.
    """

    overall: float
    worst: float

    @classmethod
    def of(cls, params: Iterable[Tensor], exact: Iterable[Tensor], start: Iterable[Tensor]) -> "Error":
        """Measures tensor by tensor, so that float64 copies of a large model need not exist at once."""
        square = move_square = worst = farthest = 0.0
        for p, e, s in zip(params, exact, start, strict=True):
            difference = p.detach().double() - e.detach()
            move = e.detach() - s.detach().double()
            square += difference.square().sum().item()
            move_square += move.square().sum().item()
            worst = max(worst, difference.abs().max().nan_to_num(torch.inf).item())
            farthest = max(farthest, move.abs().max().item())
        return cls((square / move_square) ** 0.5, worst / farthest)


def within(error: float, others: Iterable[float], tolerance: float = TOLERANCE) -> bool:
    """Whether `error` is no worse than the largest of `others` but for the tolerance; NaN never is."""
    return error <= tolerance * max(others)


@dataclass
class Record:
    """What one fp32 training left behind.

    Attributes:
        params: The trained parameters, and their averages if there are any.
        rounding: Error against the float64 optimizer that took the same gradients.
        training: Error (overall) against the float64 training, by number of steps.
        losses: Training loss, by number of steps.
        score: The task's score of the trained model.
    """

    params: list[Tensor]
    rounding: Error
    training: dict[int, float]
    losses: dict[int, float]
    score: float


@dataclass
class Verdict:
    """The figures behind "correct" for one variant; fields as in `Record`.

    Attributes:
        training_steps: The step at which `training` was judged.
    """

    correct: bool
    rounding: Error
    training: float
    training_steps: int
    losses: dict[int, float]
    score: float


def copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Of their own memory."""
    return [t.detach().clone() for t in tensors]


class TrainingCheck:
    """Trains one workload with one optimizer, in float64 and in every variant, and compares.

    Args:
        workload: What to train.
        rule: The optimizer.
        device: Where.
        zero_grad: How gradients are cleared, see `Variant.loop_calls`.
        iterations: Length of the run.
        tail: What follows the backward pass; float64 needs no scale.
    """

    def __init__(
        self,
        workload: Workload,
        rule: str,
        device: torch.device,
        zero_grad: str,
        iterations: int,
        tail: str = PLAIN,
    ) -> None:
        self.rule, self.lr, self.zero_grad, self.iterations = rule, workload.lr[rule], zero_grad, iterations
        self.tail, self.unscaled_tail = tail, tail.replace("+amp", "")
        self.task = workload.task(device)
        self.exact: dict[int, list[Tensor]] = {}
        wide = self.task.to(device, torch.float64)
        trainer = Trainer(wide, REFERENCE, rule, self.lr, "separate", self.unscaled_tail)
        self.start = copies(trainer.tail.results())
        for step in range(1, iterations + 1):
            trainer.begin()
            trainer.forward(step - 1).backward()  # type: ignore[no-untyped-call]
            trainer.step()
            if step & (step - 1) == 0:
                self.exact[step] = copies(trainer.tail.results())

    def train(self, variant: str) -> Record:
        """Trains in fp32 with the float64 optimizer alongside."""
        trainer = Trainer(self.task, VARIANTS[variant], self.rule, self.lr, self.zero_grad, self.tail)
        params = list(trainer.model.parameters())
        shadow = [nn.Parameter(p.detach().double()) for p in params]
        exact = Tail(self.unscaled_tail, REFERENCE, self.rule, nn.ParameterList(shadow), self.lr)
        training: dict[int, float] = {}
        losses: dict[int, float] = {}
        for step in range(1, self.iterations + 1):
            trainer.begin()
            loss = trainer.forward(step - 1)
            trainer.scaled(loss).backward()
            for p, s in zip(params, shadow, strict=True):
                s.grad = None if p.grad is None else p.grad.double() / trainer.tail.scale
            trainer.step()
            exact.run()
            if step in self.exact:
                training[step] = Error.of(trainer.tail.results(), self.exact[step], self.start).overall
            if step % LOSS_EVERY == 0 or step == self.iterations:
                losses[step] = loss.item()
        rounding = Error.of(trainer.tail.results(), exact.results(), self.start)
        record = copies(trainer.tail.results()), rounding, training, losses, self.task.evaluate(trainer.model)
        return Record(*record)

    def meaningful_step(self, errors: list[dict[int, float]]) -> int:
        """The number of steps after which to compare with the float64 training, see the head of this file."""

        def agreed(step: int) -> bool:
            values = [error[step] for error in errors]
            return max(values) <= min(HORIZON, AGREEMENT * min(values))

        last = list(takewhile(agreed, self.exact))[-1:] or [1]
        return max(1, last[0] // 4)

    def judge(self, records: Mapping[str, Record]) -> dict[str, Verdict]:
        """The verdict on each of `records`, which must hold all of `YARDSTICKS`."""
        step = self.meaningful_step([records[name].training for name in YARDSTICKS])

        def verdict(name: str, record: Record) -> Verdict:
            others = [records[other] for other in YARDSTICKS if other != name]
            figures: tuple[Callable[[Record], float], ...] = (
                lambda r: r.rounding.overall,
                lambda r: r.rounding.worst,
                lambda r: r.training[step],
            )
            correct = all(within(figure(record), map(figure, others)) for figure in figures)
            return Verdict(correct, record.rounding, record.training[step], step, record.losses, record.score)

        return {name: verdict(name, record) for name, record in records.items()}
