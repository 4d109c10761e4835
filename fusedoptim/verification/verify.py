"""``verify``: steps of a running training, taken again by the reference and compared bit by bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fusedoptim import native
from fusedoptim.backend import get_backend
from fusedoptim.clipping.step_clips import clips_next_step, expected_clips
from fusedoptim.reference.executor import ReferenceExecutor
from fusedoptim.reference.parameters import is_torchs, name_of, refusal
from fusedoptim.reference.rules import RULES
from fusedoptim.step import FusedStep
from fusedoptim.torch_internals.dtensor import local_of
from fusedoptim.verification.samples import (
    Sample,
    must_be_whole,
    rows_that_share,
    take_sample,
    taken,
    why_not_whole,
)

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Difference:
    """Elements that the step and the reference left with other bits."""

    step: int
    """Which of the verified steps, from 0."""
    param: str
    tensor: str
    """``param``, ``grad``, ``step`` or a key of the state such as ``exp_avg``."""
    differ: int
    """How many of the compared elements differ."""
    compared: int
    index: int
    """The first of them, as an index into the flattened tensor."""
    got: float
    expected: float

    def __str__(self) -> str:
        return (
            f"step {self.step}, {self.param}: {self.differ} of {self.compared} elements of {self.tensor} differ, "
            f"first element {self.index}: got {self.got!r}, the reference says {self.expected!r}"
        )


@dataclass
class Verification:
    """What :func:`verify` has found so far. As a context manager it ends the verification with the block.

    Attributes:
        steps: Steps verified.
        checked: Parameters compared, once for each step.
        compared: Elements compared, those of the gradient and the state included.
        differences: What was not equal. Where it is empty, all bits were.
        skipped: Why parameters could not be verified, with how often: torch's own implementation takes them, or they
            share memory with another tensor of the step, so that the reference of one alone says nothing.
    """

    optimizer: Optimizer
    every: int = 1
    params: int = 8
    elements: int = 1024
    seed: int = 0
    steps: int = field(default=0, init=False)
    checked: int = field(default=0, init=False)
    compared: int = field(default=0, init=False)
    differences: list[Difference] = field(default_factory=list, init=False)
    skipped: Counter[str] = field(default_factory=Counter, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.optimizer, FusedStep):
            raise TypeError(
                f"optimizer must be one of fusedoptim's, got {type(self.optimizer).__name__}; "
                "fusedoptim.from_torch makes one of torch's class of the same name"
            )
        for name in ("every", "params", "elements"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        if "_update" in self.optimizer.__dict__:
            raise RuntimeError("the optimizer is being verified already: stop() that verification first")
        self._draw = torch.Generator().manual_seed(self.seed)
        self._seen = 0
        self.optimizer.__dict__["_update"] = self._update

    def stop(self) -> None:
        """End the verification. What was found stays."""
        if self.optimizer.__dict__.get("_update") == self._update:
            del self.optimizer.__dict__["_update"]

    def __enter__(self) -> Verification:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __str__(self) -> str:
        where = get_backend()
        if where == "native" and native.available():
            where += f", {native.build_info()['instruction_set']}"
        verdict = "all bits equal" if not self.differences else f"{len(self.differences)} DIFFERENCES"
        lines = [
            f"{verdict}: {self.compared:,} elements of {self.checked:,} parameters in {self.steps:,} steps ({where})",
            *(f"not verified, {count} times: {reason}" for reason, count in self.skipped.items()),
            *map(str, self.differences[:20]),
        ]
        return "\n".join(lines if self.checked or self.differences else ["nothing was verified", *lines[1:]])

    def _update(self, zero_grad: bool, set_grads_to_none: bool = False) -> bool:
        """In place of the optimizer's own: copy a sample, take the step, take the sample's, compare."""
        optimizer: Any = self.optimizer
        self._seen += 1
        if (self._seen - 1) % self.every:
            return bool(type(optimizer)._update(optimizer, zero_grad, set_grads_to_none))
        found_inf, scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
        scale = None if scale is None else float(scale)
        skipped_step = found_inf is not None and float(found_inf) != 0
        skipped_before = optimizer.skipped_steps
        clips: Sequence[float] = (
            () if skipped_step or not clips_next_step(optimizer) else expected_clips(optimizer, scale)
        )
        samples = self._take_samples()
        zeroed = bool(type(optimizer)._update(optimizer, zero_grad, set_grads_to_none))
        skipped_step = skipped_step or optimizer.skipped_steps != skipped_before
        for sample in samples:
            if not skipped_step:
                self._take_reference_step(sample, zero_grad, scale, clips)
            self._compare(sample)
        self.steps += 1
        return zeroed

    @torch.no_grad()
    def _take_samples(self) -> list[Sample]:
        everyone = (
            (param, g, name_of(param, group, g, position))
            for g, group in enumerate(self.optimizer.param_groups)
            for position, param in enumerate(group["params"])
        )
        candidates = [
            (param, g, name, number)
            for number, (param, g, name) in enumerate(everyone)
            if param.grad is not None and param.numel() > 0
        ]
        states = [self._state_of(param) for param, *_ in candidates]
        rows = zip(candidates, states, strict=True)
        shared = rows_that_share([param, param.grad, *state.values()] for (param, *_), state in rows)
        samples: list[Sample] = []
        for i in torch.randperm(len(candidates), generator=self._draw).tolist():
            if len(samples) == self.params:
                break
            param, g, name, number = candidates[i]
            group = self.optimizer.param_groups[g]
            reason = "torch's own implementation was asked for" if is_torchs(group) else refusal(param)
            if reason is None and i in shared:
                reason = "it shares memory with another tensor of the step"
            if reason is None and must_be_whole(group, states[i]):
                reason = why_not_whole(param)
            if reason is None and local_of(param).numel() > 0:
                scalars = self._scalars()
                samples.append(
                    take_sample(name, param, group, states[i], self.elements, self._draw, scalars, g, number)
                )
            elif reason is not None:
                self.skipped[reason] += 1
        return samples

    def _scalars(self) -> frozenset[str]:
        scalars: frozenset[str] = RULES[self.optimizer._rule].scalars  # type: ignore[attr-defined]
        return scalars

    def _state_of(self, param: Tensor) -> dict[str, Any]:
        state = self.optimizer.state.get(param)
        return dict(state) if isinstance(state, dict) else {}  # what is wrong with another, the step says

    def _take_reference_step(
        self, sample: Sample, zero_grad: bool, scale: float | None, clips: Sequence[float]
    ) -> None:
        optimizer: Any = self.optimizer
        executor = ReferenceExecutor(optimizer._rule)
        state = {sample.copy: sample.state} if sample.state else {}
        clip = clips[sample.group_index : sample.group_index + 1]
        foreign = executor.prepare(
            [sample.group], state, optimizer._new_state, zero_grad or scale is not None, clip, sample.number
        )
        assert foreign is None, "the reference takes every plain parameter"
        executor.apply(state, zero_grad, scale)
        sample.state = state.get(sample.copy, {})

    def _compare(self, sample: Sample) -> None:
        now = self._state_of(sample.param)
        pairs: list[tuple[str, Any, Any]] = [("param", sample.param, sample.copy)]
        if sample.param.grad is not None:
            pairs.append(("grad", sample.param.grad, sample.copy.grad))
        pairs += [(key, now.get(key), value) for key, value in sample.state.items() if isinstance(value, Tensor)]
        for tensor, got, expected in pairs:
            self.checked += tensor == "param"
            if tensor in self._scalars() or not isinstance(got, Tensor):
                found = torch.tensor([float("nan") if got is None else float(got)], dtype=torch.float64)
                self._note(sample, tensor, found, torch.tensor([float(expected.flatten()[0])], dtype=torch.float64))
            else:
                is_whole = got.numel() == expected.numel()
                mine = local_of(got).detach().cpu().flatten() if is_whole else taken(got, sample.index)
                self._note(sample, tensor, mine, expected.detach().flatten())

    def _note(self, sample: Sample, tensor: str, got: Tensor, expected: Tensor) -> None:
        self.compared += got.numel()
        bits = _INTEGERS[got.element_size()]
        differ = (got.view(bits) != expected.view(bits)) & ~(got.isnan() & expected.isnan())
        if bool(differ.any()):
            first = int(differ.nonzero()[0])
            where = int(sample.index[first]) if got.numel() == sample.index.numel() else 0
            numbers = float(got[first]), float(expected[first])
            self.differences.append(
                Difference(self.steps, sample.name, tensor, int(differ.sum()), got.numel(), where, *numbers)
            )


def verify(
    optimizer: Optimizer, *, every: int = 1, params: int = 8, elements: int = 1024, seed: int = 0
) -> Verification:
    """Take the steps of ``optimizer`` a second time in the reference, for a sample of elements, and compare all bits.

    It works on the steps that training takes anyhow, and changes nothing about them; hooks, closures, schedulers and
    ``GradScaler`` work as without it. It goes on until :meth:`Verification.stop`, or to the end of a ``with`` block.

    Args:
        optimizer: One of this package's optimizers.
        every: Verify one step in so many.
        params: How many parameters of such a step, drawn anew each time.
        elements: How many elements of each at most; the first and last 64 are always among them.
        seed: Of the drawing.

    Returns:
        The findings, which grow with each step; printed, they are a report.

    Raises:
        TypeError: ``optimizer`` is not one of this package's.
        ValueError: ``every``, ``params`` or ``elements`` is not positive.
        RuntimeError: ``optimizer`` is being verified already.

    A verified step costs a few milliseconds per parameter, and waits for the device where parameters are on one, so
    steps that a CUDA graph captures cannot be verified.

    Example:
        >>> import torch, fusedoptim
        >>> model = torch.nn.Linear(20, 3)
        >>> optimizer = fusedoptim.AdamW(model.parameters())
        >>> with fusedoptim.verify(optimizer) as found:
        ...     for _ in range(3):
        ...         model(torch.randn(5, 20)).sum().backward()
        ...         optimizer.step(zero_grad="to_none")
        >>> found.differences
        []
    """
    return Verification(optimizer, every, params, elements, seed)
