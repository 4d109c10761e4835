"""Whether a step on a device leaves the bits that the CPU kernels leave on copies of the same tensors.

Every check yields outcomes; one without outcomes counts as failed, so that nothing passes by comparing nothing. All of
them run on the CPU as well, in place of a device: `test_gpu_check.py` shows there that each notices one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain, product
from typing import Any
from unittest import mock

import cases
import placed
import steps
import torch
from torch import Tensor
from torch.nn import Parameter

from fusedoptim.step import FusedStep
from on_device.device import Device

SIZES = (0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 8191, 8192, 8193, 100003)  # 8192: kChunk of the kernels
SHORT_SIZES = (0, 1, 17, 33, 8193)
SHAPE = (3, 5, 4, 7)  # of parameters in other layouts
STEPS = 3


@dataclass(frozen=True)
class Outcome:
    """What one comparison has found: one line for every tensor that differs."""

    label: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Settings:
    """How much is compared."""

    device: Device
    sizes: tuple[int, ...] = SIZES  # elements of the one-dimensional parameters
    quick: bool = False  # only the cases with all hyper-parameters at once


@contextmanager
def kernels_only() -> Iterator[None]:
    """A parameter that is left to torch's own implementation is an error: its bits would prove nothing."""

    def refuse(self: Any, params: Any, clips: Any = ()) -> None:
        raise AssertionError(f"left to torch: {[[tuple(p.shape) for p in group] for group in params]}")

    with mock.patch.object(FusedStep, "_torch_step", refuse):
        yield


@cache
def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """As in the tests, remembered: all cases take the same ones. Not to be written to."""
    values: Tensor = steps.numbers(shape, dtype, seed)
    return values


def params_of(optimizer: Any) -> list[Any]:
    """All parameters."""
    return list(chain.from_iterable(group["params"] for group in optimizer.param_groups))


def on_host(optimizer: Any) -> Any:
    """A snapshot with all tensors on the CPU."""
    return [{name: x.detach().to("cpu", copy=True) for name, x in entry.items()} for entry in steps.tensors(optimizer)]


class Pair:
    """An optimizer on the device and one on the CPU, with equal parameters; `move` copies a tensor to the device."""

    def __init__(
        self,
        make: Callable[[list[Parameter]], Any],
        values: Sequence[Tensor],
        device: Device,
        move: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.where, self.move = device, move or (lambda x: x.to(device.torch, copy=True))
        self.host = make([Parameter(x.clone()) for x in values])
        self.device = make([Parameter(self.move(x)) for x in values])

    def set_grads(self, seed: int, in_place: bool = False) -> None:
        """The same new gradients for both; `in_place` where a graph reads the old ones."""
        pairs = zip(params_of(self.device), params_of(self.host), strict=True)
        for i, (mine, other) in enumerate(pairs):
            grad = numbers(tuple(other.shape), other.dtype, seed * 100_003 + i)
            other.grad = grad.clone()
            if in_place and mine.grad is not None:
                mine.grad.copy_(grad)
            else:
                mine.grad = self.move(grad)

    def step(self, **options: Any) -> None:
        """A step of both."""
        self.device.step(**options)
        self.host.step(**options)

    def compare(self, label: str) -> Outcome:
        """All tensors of both."""
        return Outcome(label, steps.differences(on_host(self.device), on_host(self.host), f"{label}: "))

    def follow(self, label: str, count: int = STEPS, first: int = 0, **options: Any) -> Iterator[Outcome]:
        """Steps of both with new gradients, compared after each."""
        for seed in range(first, first + count):
            self.set_grads(seed)
            self.step(**options)
            yield self.compare(f"{label}, step {seed + 1}")


def values_of(sizes: Iterable[int], dtype: torch.dtype) -> list[Tensor]:
    """One-dimensional parameters."""
    return [numbers((size,), dtype, 1000 + i) for i, size in enumerate(sizes)]


def named(case: Any, dtype: torch.dtype) -> str:
    """A case and a dtype, for a line."""
    return f"{case.id} {str(dtype).removeprefix('torch.')}"


def check_rules(dtype: torch.dtype, settings: Settings) -> Iterator[Outcome]:
    """Every case, with parameters of all sizes in one optimizer."""
    for case in cases.everything() if settings.quick else cases.CASES:
        yield from Pair(case.make, values_of(settings.sizes, dtype), settings.device).follow(named(case, dtype))


def check_special_values(settings: Settings) -> Iterator[Outcome]:
    """Any bit patterns: subnormal and infinite numbers, and NaN."""
    for case, dtype in product(cases.everything(), cases.DTYPES):
        shapes = (4099, 257, 64)
        pair = Pair(case.make, [steps.any_bits(n, dtype, seed=n) for n in shapes], settings.device)
        for seed in (1, 2):
            for mine, other in zip(params_of(pair.device), params_of(pair.host), strict=True):
                other.grad = steps.any_bits(len(other), dtype, seed=seed * 10_007 + len(other))
                mine.grad = pair.move(other.grad)
            pair.step()
            yield pair.compare(f"{named(case, dtype)}, any bits, step {seed}")


def one_element_in(x: Tensor) -> Tensor:
    """The same numbers in memory that begins one element after an aligned address."""
    view = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:].view(x.shape)
    return view.copy_(x)


def check_misaligned(settings: Settings) -> Iterator[Outcome]:
    """Every tensor begins one element in; then parameters and gradients that are aligned differently."""
    device = settings.device
    for case, dtype in product(cases.one_per_class(), cases.DTYPES):
        values = values_of(settings.sizes, dtype)
        for mode in (None, "to_zero"):
            pair = Pair(case.make, values, device, lambda x: one_element_in(x.to(device.torch, copy=True)))
            yield from pair.follow(f"{named(case, dtype)}, begins one element in, {mode}", zero_grad=mode)
        pair.move = lambda x: x.to(device.torch, copy=True)
        yield from pair.follow(f"{named(case, dtype)}, aligned gradients", 1, STEPS)


class Twice:
    """A tensor in a layout, in two equal buffers: one on the CPU, one on the device."""

    def __init__(self, values: Tensor, layout: Any, device: Device) -> None:
        self.host = placed.Placed(values, layout)
        view = self.host.view
        self.buffer = self.host.buffer.to(device.torch, copy=True)
        self.view = self.buffer.as_strided(view.shape, view.stride(), view.storage_offset())

    def outcome(self, label: str) -> Outcome:
        """The whole buffers, so the elements between and after too; and those that nobody may change."""
        lines = (steps.difference(self.buffer.cpu(), self.host.buffer), self.host.guard_difference())
        return Outcome(label, [f"{label}: {line}" for line in lines if line])


def check_layouts(settings: Settings) -> Iterator[Outcome]:
    """Parameters and gradients in every layout, inside buffers whose other elements stay as they are."""
    layouts = list(placed.LAYOUTS.items())
    for case, dtype in product(cases.one_per_class(), cases.DTYPES):
        device, host, watched, grads = [], [], [], []
        for i, (name, layout) in enumerate(layouts):
            grad_name, grad_layout = [*layouts, *placed.EXPANDED_LAYOUTS.items()][(3 * i + 1) % (len(layouts) + 4)]
            param = Twice(numbers(SHAPE, dtype, i), layout, settings.device)
            grad = Twice(numbers(SHAPE, dtype, 50 + i), grad_layout, settings.device)
            device.append(Parameter(param.view))
            host.append(Parameter(param.host.view))
            grads.append((grad.view, grad.host.view))
            watched += [(f"parameter {name}", param), (f"gradient {grad_name}", grad)]
        ours, theirs = case.make(device), case.make(host)
        for step in range(2):
            for mine, other, (left, right) in zip(device, host, grads, strict=True):
                mine.grad, other.grad = left, right
            ours.step()
            theirs.step()
            for label, tensor in watched:
                yield tensor.outcome(f"{named(case, dtype)}, {label}, step {step + 1}")
            states = steps.differences(on_host(ours), on_host(theirs), f"{named(case, dtype)}, layouts: ")
            yield Outcome("state", states)


def run(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """How many comparisons there were, and the first lines of what differed."""
    compared, failed = 0, 0
    lines: list[str] = []
    with kernels_only():
        for outcome in outcomes:
            compared += 1
            failed += bool(outcome.lines)
            lines += outcome.lines[: max(0, 20 - len(lines))]
    if compared == 0:
        lines.append("nothing was compared")
    return {"passed": failed == 0 and compared > 0, "compared": compared, "failed": failed, "lines": lines}
