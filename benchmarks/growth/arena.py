"""The tensors of each size whose steps are timed, and whether the steps are correct.

Parameters and gradients repeat a pattern whose length is prime, so that no two chunks or tensors hold the same values
where a step might mistake one for another. The rules are elementwise: what float64 makes of the pattern, computed once,
is what it makes of every size. The bound is that of `shared/arena.py`, against torch's variants on the pattern. Small
sizes are checked several times, on different parts of the pattern; of more than `SLICES` patterns as many are compared,
spread evenly.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.shared.arena import CHECK_SCALES, LR, SharedTensors, StepVerdict, after_exact_steps
from benchmarks.shared.correctness import Error, no_worse
from benchmarks.shared.shapes import Model
from benchmarks.shared.variants import VARIANTS, YARDSTICKS

RULE = "adam"
PERIOD = 1_048_573  # elements of the pattern, a prime
ENOUGH, TRIALS = 4096, 64  # elements that a check sees, as long as it takes no more trials
SLICES = 64
TENSOR = 64  # elements in each of many tensors
RESIDENT = 16  # bytes per element that a step touches: parameter, gradient and two of state, fp32
TEMPORARY = 8  # bytes per element that torch's for-loop allocates in a step: sqrt(v), and its quotient by a number


class Pattern(NamedTuple):
    """Each stands there twice over, so that a slice of up to `PERIOD` elements can begin anywhere."""

    start: Tensor
    grads: Tensor
    exact: Tensor  # parameters after the steps of the check, in float64


@cache
def pattern() -> Pattern:
    generator = torch.Generator().manual_seed(0)
    start, grads = (torch.empty(PERIOD).uniform_(-end, end, generator=generator) for end in (0.1, 0.01))
    exact = after_exact_steps(RULE, LR[RULE], start, grads)
    return Pattern(*(values.repeat(2) for values in (start, grads, exact)))


class GrowthArena(SharedTensors):
    """Tensors of one dimension that hold the pattern."""

    def __init__(self, model: Model) -> None:
        super().__init__(model, RULE)
        for p, g in zip(self.params, self.grads, strict=True):
            p.grad = g
        count = min(TRIALS, ceil(ENOUGH / model.elements))
        self.trials = [i * model.elements % PERIOD for i in range(count)]  # where in the pattern each begins

    def write(self, tensors: Sequence[Tensor], values: Tensor, begin: int, scale: float = 1.0) -> None:
        """Writes the pattern, from its element `begin` on, through all the tensors."""
        with torch.no_grad():
            for tensor in tensors:
                for piece in torch.split(tensor, PERIOD):
                    torch.mul(values[begin : begin + len(piece)], scale, out=piece)
                begin = (begin + len(tensor)) % PERIOD

    def slices(self) -> list[slice]:
        begins = range(0, self.model.elements, PERIOD)
        count = min(SLICES, len(begins))
        chosen = [begins[i * (len(begins) - 1) // max(1, count - 1)] for i in range(count)]
        return [slice(begin, min(begin + PERIOD, self.model.elements)) for begin in chosen]

    def stepped(self, optimizer: Any) -> Iterator[Tensor]:
        """The parameters after the steps of the check, slice by slice, in one trial after the other."""
        for begin in self.trials:
            self.write(self.params, pattern().start, begin)
            steps = [state["step"] for state in optimizer.state.values()]
            for tensor in (*steps, *(t for tensors in self.state.values() for t in tensors)):
                tensor.zero_()
            for scale in CHECK_SCALES:
                self.write(self.grads, pattern().grads, begin, scale)
                optimizer.step()
            flat = torch.cat([p.detach() for p in self.params]) if len(self.params) > 1 else self.params[0].detach()
            yield from (flat[part] for part in self.slices())

    def expected(self, values: Tensor) -> Iterator[Tensor]:
        """The slices of `values`, those of a pattern, that belong to what `stepped` yields."""
        for begin in self.trials:
            for part in self.slices():
                place = (begin + part.start) % PERIOD
                yield values[place : place + part.stop - part.start]

    def error(self, optimizer: Any) -> Error:
        return Error.of(self.stepped(optimizer), self.expected(pattern().exact), self.expected(pattern().start))

    def check(self, optimizers: dict[str, Any]) -> dict[str, StepVerdict]:
        """The verdict on each optimizer, by the name of its variant; leaves the gradients as the pattern has them."""
        verdicts = {}
        for name, optimizer in optimizers.items():
            error = self.error(optimizer)
            others = [other for yardstick, other in yardsticks().items() if yardstick != name]
            verdicts[name] = StepVerdict(no_worse(error, others), error)
        self.write(self.grads, pattern().grads, 0)
        return verdicts


@cache
def yardsticks() -> dict[str, Error]:
    """The errors of torch's own variants on the pattern."""
    arena = GrowthArena(one_tensor(PERIOD))
    return {name: arena.error(arena.optimizer(name)) for name in YARDSTICKS if VARIANTS[name].has(RULE)}


def one_tensor(elements: int) -> Model:
    return Model(((elements,),), 1)


def many_tensors(count: int) -> Model:
    return Model(((TENSOR,),) * count, 1)
