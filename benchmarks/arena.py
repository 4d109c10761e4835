"""One set of parameters, gradients and optimizer state which all variants update in turn.

Sharing the tensors makes the comparison fair: every variant meets the same values on the same pages of memory.
Before each timed call the gradients are written anew, as a backward pass would, also for variants that leave
them alone: each call finds the same values, and as much of them in cache. They are not zero and so no state
decays into denormal numbers, which would be slow for reasons of their own.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from correctness import REFERENCE, YARDSTICKS, Error, within
from probe import Probe
from shapes import Model
from variants import OURS, RULES, VARIANTS

LR = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}
CHECK_SCALES = (1.0, -0.5, 2.0)  # of the gradients, step by step
OURS_TO_ZERO = f"{OURS}-to_zero"
STEP_VARIANTS = (*YARDSTICKS, OURS, OURS_TO_ZERO)


@dataclass(frozen=True)
class StepVerdict:
    """Whether the steps of one variant are correct, and the error that says so."""

    correct: bool
    error: Error


class Arena:
    """Tensors in the shapes of a model, with the state of one rule; fp32 on the CPU.

    Args:
        model: The shapes.
        rule: A key of `RULES`.
    """

    def __init__(self, model: Model, rule: str) -> None:
        self.model, self.rule = model, rule
        self.params = [nn.Parameter(torch.empty(shape)) for shape in model.shapes]
        self.grads = [torch.empty(shape) for shape in model.shapes]
        self.source = [torch.empty(shape) for shape in model.shapes]
        self.state = {name: [torch.empty(shape) for shape in model.shapes] for name in RULES[rule].state}
        self.reset()

    def reset(self) -> None:
        """Writes the initial values, the same each time: no step taken yet."""
        generator = torch.Generator().manual_seed(0)
        for p, source in zip(self.params, self.source, strict=True):
            nn.init.uniform_(p, -0.1, 0.1, generator=generator)
            nn.init.uniform_(source, -0.01, 0.01, generator=generator)
        for tensor in (tensor for tensors in self.state.values() for tensor in tensors):
            tensor.zero_()
        self.write_grads()

    def write_grads(self, scale: float = 1.0) -> None:
        """Does what a backward pass does to the gradients."""
        for p, g, source in zip(self.params, self.grads, self.source, strict=True):
            torch.mul(source, scale, out=g)
            p.grad = g

    def optimizer(self, variant: str) -> Any:
        """An optimizer of the named variant over the shared tensors."""
        optimizer = VARIANTS[variant].build(self.rule, self.params, LR[self.rule])
        for i, p in enumerate(self.params):
            optimizer.state[p] = {name: tensors[i] for name, tensors in self.state.items()}
            if self.rule != "sgd":
                optimizer.state[p]["step"] = torch.tensor(0.0)
        return optimizer

    def step(self, variant: str) -> Callable[[], object]:
        """The step of a variant; `OURS_TO_ZERO` is ours with the gradients zeroed within it."""
        if variant == OURS_TO_ZERO:
            return partial(self.optimizer(OURS).step, zero_grad="to_zero")
        step: Callable[[], object] = self.optimizer(variant).step
        return step

    def probe(self) -> Probe:
        """The traffic of a step on these very tensors."""
        params = [p.detach() for p in self.params]
        return Probe("adam" if len(self.state) == 2 else "sgd", [params, *self.state.values(), self.grads])

    def exact(self) -> Iterator[Tensor]:
        """The parameters after the steps of the check in float64, tensor by tensor: the rules are elementwise."""
        for p, source in zip(self.params, self.source, strict=True):
            wide = nn.Parameter(p.detach().double())
            optimizer = REFERENCE.build(self.rule, [wide], LR[self.rule])
            for scale in CHECK_SCALES:
                wide.grad = source.double() * scale
                optimizer.step()
            yield wide.detach()

    def error(self, variant: str, exact: Sequence[Tensor], start: Sequence[Tensor]) -> Error:
        """Takes the steps of the check with a variant, and compares with where float64 has come."""
        self.reset()
        step = self.step(variant)
        for scale in CHECK_SCALES:
            self.write_grads(scale)
            step()
        return Error.of(self.params, exact, start)

    def check(self, variants: Sequence[str]) -> dict[str, StepVerdict]:
        """Takes a few steps with each variant and judges as `correctness.py` does."""
        self.reset()
        start = [p.detach().clone() for p in self.params]
        exact = list(self.exact())
        errors: dict[str, Error] = {}
        zeroed = True
        for variant in dict.fromkeys((*YARDSTICKS, *variants)):
            errors[variant] = self.error(variant, exact, start)
            if variant == OURS_TO_ZERO:
                zeroed = not any(p.grad is None or p.grad.any() for p in self.params)

        def verdict(variant: str) -> StepVerdict:
            others = [errors[name] for name in YARDSTICKS if name != variant]
            error = errors[variant]
            correct = within(error.overall, (o.overall for o in others))
            correct &= within(error.worst, (o.worst for o in others))
            return StepVerdict(correct and (zeroed or variant != OURS_TO_ZERO), error)

        self.reset()
        return {variant: verdict(variant) for variant in variants}
