"""Numbers to step with, steps on any path, and comparisons of what they leave.

Comparisons are of bits: a NaN equals any NaN, the signs of zeros must agree, everything else must be the same number.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import fusedoptim
from fusedoptim import native

_AT_START = fusedoptim.build_info()["instruction_set"]
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


# ---- numbers --------------------------------------------------------------------------------------------------------


def numbers(shape: int | Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    """Numbers of both signs and many magnitudes around 1, a fifth of them zero."""
    size = (shape,) if isinstance(shape, int) else tuple(shape)
    make = _numbers_made_once if math.prod(size) < 1000 else _numbers_made_once.__wrapped__
    return make(size, seed).to(dtype, copy=True)


@functools.lru_cache(maxsize=4096)  # the same for each case, dtype and instruction set
def _numbers_made_once(size: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=generator, dtype=torch.float64)
    values *= torch.randn(size, generator=generator, dtype=torch.float64).mul(2).exp()
    return values * (torch.rand(size, generator=generator) > 0.2)


def any_bits(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Any bit patterns at all; every second number has an exponent near that of 1, so that they meet each other."""
    generator = torch.Generator().manual_seed(seed)
    integer = INTEGERS[dtype.itemsize]
    limits = torch.iinfo(integer)
    patterns = torch.randint(limits.min, limits.max, (count,), generator=generator, dtype=integer).view(dtype)
    patterns[::2] = numbers(count, dtype, seed + 1)[::2]
    return patterns


def special_values(dtype: torch.dtype) -> Tensor:
    """Zeros, subnormals, both ends of the range, squares that overflow or vanish, infinities and NaN."""
    info = torch.finfo(dtype)
    tiny, eps, largest = info.tiny, info.eps, info.max
    positive = [
        0.0, tiny * eps, 3 * tiny * eps, tiny - tiny * eps, tiny, tiny + tiny * eps, math.sqrt(tiny), eps / 2, 1.0,
        1 + eps, math.pi, math.sqrt(largest), 2 * math.sqrt(largest), largest / 2, largest, math.inf, math.nan,
    ]  # fmt: skip
    return torch.tensor([*positive, *(-x for x in positive)], dtype=torch.float64).to(dtype)


def parameters(sizes: Iterable[int], dtype: torch.dtype, seed: int = 1000) -> list[Parameter]:
    """One-dimensional parameters."""
    return [Parameter(numbers(size, dtype, seed + i)) for i, size in enumerate(sizes)]


def set_gradients(params: Iterable[Parameter], seed: int) -> None:
    """Give every parameter a new gradient, which depends on nothing but the seed and its place in the list."""
    for i, p in enumerate(params):
        p.grad = numbers(p.shape, p.dtype, seed * 100_003 + i)


# ---- taking steps ---------------------------------------------------------------------------------------------------


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Take the steps on ``"reference"``, or on the kernels of the instruction set of that name."""
    if name == "reference":
        with fusedoptim.set_backend("reference"):
            yield
        return
    native.set_instruction_set(name)
    try:
        with fusedoptim.set_backend("native"):
            yield
    finally:
        native.set_instruction_set(_AT_START)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch and the kernels use ``count`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def numbers_in_double(case: Any = None) -> Iterator[None]:
    """Have new state keep its numbers in float64; of a case only where the rule has any beside the step count."""
    before = torch.get_default_dtype()
    if case is None or case.rule.numbers:
        torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


Snapshot = list[dict[str, Tensor]]


def tensors(optimizer: Any) -> Snapshot:
    """For every parameter its tensors by name: itself, its gradient if it has one and its state. Not copies."""
    result = []
    for p in itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups):
        entry = {"param": p.detach(), **({} if p.grad is None else {"grad": p.grad.detach()})}
        state = optimizer.state.get(p, {})
        result.append({**entry, **{name: x for name, x in state.items() if x is not None}})
    return result


def snapshot(optimizer: Any) -> Snapshot:
    """Copies of ``tensors``."""
    return [{name: x.clone() for name, x in entry.items()} for entry in tensors(optimizer)]


def take_steps(optimizer: Any, name: str, count: int = 3, **step_options: Any) -> list[Snapshot]:
    """Take steps on one path with gradients 0, 1, 2, … and return a snapshot after each."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    result = []
    with backend(name):
        for step in range(count):
            set_gradients(params, step)
            optimizer.step(**step_options)
            result.append(snapshot(optimizer))
    return result


def one_step(make: Callable[[list[Parameter]], Any], tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
    """Take one step from copies, in ``dtype``, of the given ``param``, ``grad`` and state; return what comes out.

    Args:
        make: Makes the optimizer.
        tensors: As an entry of a snapshot; the state may be missing, as before the first step.
        dtype: Floating-point dtype.

    Returns:
        The new tensors by name, without ``grad``, ``step`` and other numbers.
    """
    copies = {name: x.clone() if x.ndim == 0 else x.to(dtype, copy=True) for name, x in tensors.items()}
    param = Parameter(copies.pop("param"))
    param.grad = copies.pop("grad")
    optimizer = make([param])
    if copies:
        optimizer.state[param] = copies
    optimizer.step()
    (entry,) = snapshot(optimizer)
    return {name: x for name, x in entry.items() if name != "grad" and x.ndim > 0}


def units(dtype: torch.dtype, *magnitudes: Tensor) -> Tensor:
    """The unit in the last place, in ``dtype``, of the largest of the magnitudes, element by element; in float64."""
    info = torch.finfo(dtype)
    largest = functools.reduce(torch.maximum, (x.double().abs().nan_to_num() for x in magnitudes))
    exponents = torch.frexp(largest.clamp(info.tiny, info.max)).exponent.double() - 1
    return torch.exp2(exponents) * info.eps


# ---- comparing ------------------------------------------------------------------------------------------------------


def bits_equal(actual: Tensor, expected: Tensor) -> Tensor:
    """Where two tensors of one dtype and shape hold the same number, as a tensor of bools in row-major order."""
    assert actual.dtype == expected.dtype, f"{actual.dtype} is not {expected.dtype}"
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    same = _patterns(actual) == _patterns(expected)
    if not actual.dtype.is_floating_point:
        return same
    a, b = (x.detach().contiguous().view(-1) for x in (actual, expected))
    return same | (a.isnan() & b.isnan())


def _patterns(x: Tensor) -> Tensor:
    """The bits of floating-point numbers as whole numbers, in row-major order."""
    flat = x.detach().contiguous().view(-1)
    return flat.view(INTEGERS[flat.element_size()]) if flat.dtype.is_floating_point else flat


def difference(actual: Tensor, expected: Tensor) -> str | None:
    """How many elements differ, and the first that does; None if none does."""
    if (actual.dtype, actual.shape) == (expected.dtype, expected.shape) and torch.equal(
        _patterns(actual), _patterns(expected)
    ):
        return None  # as nearly always, and quickly seen
    wrong = torch.nonzero(~bits_equal(actual, expected)).view(-1)
    if len(wrong) == 0:
        return None
    first = int(wrong[0])
    values = (x.detach().contiguous().view(-1)[first].item() for x in (actual, expected))
    got, wanted = (x.hex() if isinstance(x, float) else str(x) for x in values)
    return f"{len(wrong)} of {actual.numel()} elements differ; number {first} is {got} and should be {wanted}"


def differences(actual: Snapshot, expected: Snapshot, when: str = "") -> list[str]:
    """One line for every tensor that differs."""
    assert len(actual) == len(expected)
    lines = []
    for i, (mine, wanted) in enumerate(zip(actual, expected, strict=True)):
        if mine.keys() != wanted.keys():
            lines.append(f"{when}parameter {i} has {sorted(mine)} and should have {sorted(wanted)}")
            continue
        for name, x in mine.items():
            line = difference(x, wanted[name])
            if line is not None:
                lines.append(f"{when}parameter {i} {tuple(x.shape)} {name}: {line}")
    return lines


def fail_on(lines: Sequence[str]) -> None:
    """Fail with the first lines, if there are any."""
    if lines:
        pytest.fail("\n".join([*lines[:12], *([f"… and {len(lines) - 12} more"] if len(lines) > 12 else [])]))


def assert_same(actual: Snapshot, expected: Snapshot, when: str = "") -> None:
    """Every tensor holds the same bits."""
    fail_on(differences(actual, expected, when))


def assert_same_steps(actual: Sequence[Snapshot], expected: Sequence[Snapshot], when: str = "") -> None:
    """As ``assert_same``, for what a number of steps has left."""
    for step, (mine, wanted) in enumerate(zip(actual, expected, strict=True)):
        assert_same(mine, wanted, f"{when}step {step + 1}, ")


def once_on_reference(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate ``function(name, …)``, which takes steps on the path of that name: the reference takes them once."""
    remembered = functools.lru_cache(maxsize=4)(function)

    @functools.wraps(function)
    def run(name: str, *args: Any) -> Any:
        return (remembered if name == "reference" else function)(name, *args)

    return run


@once_on_reference
def steps_of(name: str, case: Any, dtype: torch.dtype, sizes: tuple[int, ...], count: int) -> list[Snapshot]:
    """``take_steps`` for a case and one-dimensional parameters."""
    return take_steps(case.make(parameters(sizes, dtype)), name, count)


def assert_follows(optimizer: Any, name: str, expected: Sequence[Snapshot], **step_options: Any) -> None:
    """Steps on one path give the expected tensors, each step taken from the expected state before it.

    So every line of a failure tells of a mistake in that very step. ``expected`` is what ``take_steps`` returned.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    lines: list[str] = []
    with backend(name):
        for step, wanted in enumerate(expected):
            set_gradients(params, step)
            optimizer.step(**step_options)
            lines += differences(tensors(optimizer), wanted, f"step {step + 1}, ")
            for mine, right in zip(tensors(optimizer), wanted, strict=True):
                for key in mine.keys() & right.keys():
                    mine[key].copy_(right[key])
    fail_on(lines)
