"""One set of parameters, gradients and optimizer state which all variants update in turn.

Sharing the tensors makes the comparison fair: every variant meets the same values on the same pages of memory.
Before each timed call the gradients are written anew, as a backward pass would, also for variants that leave
them alone: each call finds the same values, and as much of them in cache. They are not zero and so no state
decays into denormal numbers, which would be slow for reasons of their own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.shared.compiled import COMPILED, CompiledStep
from benchmarks.shared.correctness import TOLERANCE, Error, no_worse
from benchmarks.shared.measure import Call, ratio, spread
from benchmarks.shared.probe import Probe
from benchmarks.shared.report import Times, unfinished
from benchmarks.shared.shapes import Model
from benchmarks.shared.variants import ALL_RULES, LIMIT, OURS, REFERENCE, VARIANTS, YARDSTICKS
from fusedoptim.reference.rule import PARAM

LR = {rule: 0.1 if kind.class_name == "SGD" else 1e-3 for rule, kind in ALL_RULES.items()}
LOW_LR = 0.1  # of bfloat16 and float16: moves that are large beside what rounding does to the parameters
COMPILED_TOLERANCE = 20.0  # it computes 1 - beta ** t in float32, where little is left of it in the first steps
ENDS = 64  # elements at each end of a tensor that are always checked: vectors and what is left of them
CHECK_SCALES = (1.0, -0.5, 2.0)  # of the gradients, step by step
OURS_TO_ZERO = f"{OURS}-to_zero"
STEP_VARIANTS = (*YARDSTICKS, OURS, OURS_TO_ZERO)


@dataclass(frozen=True)
class StepVerdict:
    correct: bool
    error: Error


def after_exact_steps(rule: str, lr: float, param: Tensor, grad: Tensor) -> Tensor:
    wide = nn.Parameter(param.double())
    optimizer = REFERENCE.build(rule, [wide], lr)
    for scale in CHECK_SCALES:
        wide.grad = grad.double() * scale
        optimizer.step()
    return wide.detach()


class SharedTensors:
    """Parameters, gradients and the state of a rule, a key of `ALL_RULES`, uninitialised; and what updates them."""

    def __init__(
        self, model: Model, rule: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        self.model, self.rule, self.dtype, self.device = model, rule, dtype, device
        self.low = dtype.itemsize < 4
        self.lr = LOW_LR if self.low else LR[rule]
        self.compiled: CompiledStep | None = None
        self.params = [nn.Parameter(tensor) for tensor in self.empty("param")]
        self.grads = self.empty("grad")
        self.state = {name: self.empty(name) for name in ALL_RULES[rule].state}
        self.declared = ALL_RULES[rule].declared

    def empty(self, role: str) -> list[Tensor]:
        """Memory for a tensor of each shape; `role` is "param", "grad" or the name of a state."""
        return [torch.empty(shape, dtype=self.dtype, device=self.device) for shape in self.model.shapes]

    def optimizer(self, variant: str, **settings: Any) -> Any:
        optimizer = VARIANTS[variant].build(self.rule, self.params, self.lr, **settings)
        group = optimizer.param_groups[0]
        place = self.device if group.get("fused") or group.get("capturable") else "cpu"
        for i, p in enumerate(self.params):
            optimizer.state[p] = {name: tensors[i] for name, tensors in self.state.items()}
            for name in sorted(self.declared.scalars & set(self.declared.own_state(group))):
                value = self.declared.numbers.get(name, 0.0)
                start = torch.tensor(float(group[value] if isinstance(value, str) else value), device=place)
                optimizer.state[p][name] = start
        return optimizer

    def step(self, variant: str) -> Call:
        """The step of a variant, no step taken yet.

        `OURS_TO_ZERO` is ours with the gradients zeroed within it; `COMPILED` is compiled only once, since that takes
        long, and takes steps as it is: the values of all tensors are others then.
        """
        if variant == COMPILED:
            if self.compiled is None:
                self.compiled = CompiledStep(self.optimizer("torch-default"))
            self.compiled.forget_steps()
            return self.compiled
        if variant == OURS_TO_ZERO:
            return partial(self.optimizer(OURS).step, zero_grad="to_zero")
        step: Call = self.optimizer(variant).step
        return step

    def probe(self, repeats: int = 1, **how: Any) -> Probe:
        """The traffic of a step on these very tensors; `how` goes to `Probe`."""
        params = [p.detach() for p in self.params]
        return Probe("step", [params, *self.state.values(), self.grads], repeats, **how)


class Arena(SharedTensors):
    """Tensors in the shapes of a model, with values that a check starts from and gradients that can be rewritten.

    The check looks at one element in `stride`, beside the first and the last few of a tensor. The errors of the
    variants in `yardsticks` are the measure; those of bfloat16 and float16 must not have torch 2.13's fused SGD among
    them, which leaves most elements as they are.
    """

    def __init__(
        self,
        model: Model,
        rule: str,
        dtype: torch.dtype = torch.float32,
        stride: int = 1,
        yardsticks: Sequence[str] = YARDSTICKS,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(model, rule, dtype, device)
        self.stride, self.yardsticks = stride, [name for name in yardsticks if VARIANTS[name].has(rule)]
        self.initial, self.source = self.empty("initial"), self.empty("source")
        generator = torch.Generator(device).manual_seed(0)
        for initial, source in zip(self.initial, self.source, strict=True):
            nn.init.uniform_(initial, -0.1, 0.1, generator=generator)
            nn.init.uniform_(source, -0.01, 0.01, generator=generator)
            if self.low:  # from 0.5 to 1 in size, whose squares a float16 still holds
                source.mul_(50).add_(torch.where(source < 0, -0.5, 0.5))
        self.reset()

    def reset(self) -> None:
        """Writes the initial values, the same each time: no step taken yet."""
        for p, initial in zip(self.params, self.initial, strict=True):
            p.detach().copy_(initial)
        for name, tensors in self.state.items():
            for tensor, initial in zip(tensors, self.initial, strict=True):
                tensor.copy_(initial) if self.declared.initial.get(name) == PARAM else tensor.zero_()
        self.write_grads()

    def write_grads(self, _: object = None, scale: float = 1.0) -> None:
        """Does what a backward pass does to the gradients, whatever is to be called then."""
        for p, g, source in zip(self.params, self.grads, self.source, strict=True):
            torch.mul(source, scale, out=g)
            p.grad = g

    def sample(self, tensor: Tensor) -> Tensor:
        """The elements that the check looks at; a view where that is all of them."""
        flat = tensor.detach().flatten()
        return flat if self.stride == 1 else torch.cat((flat[:ENDS], flat[:: self.stride], flat[-ENDS:]))

    def exact(self) -> Iterator[Tensor]:
        """The parameters after the steps of the check in float64, tensor by tensor: the rules are elementwise."""
        for p, source in zip(self.params, self.source, strict=True):
            yield after_exact_steps(self.rule, self.lr, self.sample(p), self.sample(source))

    def error(self, variant: str, exact: Sequence[Tensor], start: Sequence[Tensor]) -> Error:
        """Takes the steps of the check with a variant, and compares with where float64 has come."""
        step = self.step(variant)
        self.reset()
        for scale in CHECK_SCALES:
            self.write_grads(scale=scale)
            step()
        return Error.of(map(self.sample, self.params), exact, start)

    def check(self, variants: Sequence[str]) -> dict[str, StepVerdict]:
        """Takes a few steps with each variant and judges as `correctness.py` does."""
        self.reset()
        start = [self.sample(p).clone() for p in self.params]
        exact = list(self.exact())
        errors: dict[str, Error] = {}
        zeroed = True
        for variant in dict.fromkeys((*self.yardsticks, *variants)):
            errors[variant] = self.error(variant, exact, start)
            if variant == OURS_TO_ZERO:
                zeroed = not any(p.grad is None or p.grad.any() for p in self.params)

        def verdict(variant: str) -> StepVerdict:
            others = [errors[name] for name in self.yardsticks if name != variant]
            tolerance = COMPILED_TOLERANCE if variant == COMPILED else TOLERANCE
            correct = no_worse(errors[variant], others, tolerance)
            return StepVerdict(correct and (zeroed or variant != OURS_TO_ZERO), errors[variant])

        self.reset()
        return {variant: verdict(variant) for variant in variants}


def figures_of(
    times: Times, verdicts: Mapping[str, StepVerdict], moved: int | None = None, rounds: int = 0
) -> dict[str, Any]:
    """Times in microseconds, ratios and verdicts of every variant as a JSON object.

    With the bytes that a step has `moved` also the bandwidth and its share of the limit; with the number of `rounds`
    that were planned also whether there were fewer.
    """

    def figures(name: str, values: Sequence[float]) -> dict[str, Any]:
        time = spread(values)
        speed = {"gb_per_s": moved / time["median"] / 1e3, "limit_share": ratio(times[LIMIT], values)} if moved else {}
        return {
            "time": time,
            **speed,
            **(asdict(verdicts[name]) if name in verdicts else {}),
            **({"ratio": ratio(values, times[OURS])} if OURS in times else {}),
            **unfinished(len(values), rounds),
        }

    return {name: figures(name, values) for name, values in times.items()}
