"""Parameters, gradients and state that share memory: updated one after the other, as torch's for-loop does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import (
    PER_THREAD,
    Case,
    best_instruction_set,
    for_drivers,
    of_cases,
    of_drivers,
    one_per_class,
)
from steps import (
    Snapshot,
    assert_same_steps,
    backend,
    numbers,
    numbers_in_double,
    snapshot,
    threads,
)
from torch import Tensor
from torch.nn import Parameter

from fusedoptim.step import FusedStep

pytestmark = pytest.mark.usefixtures("one_thread", "kernels_only")


SHARED: dict[str, Callable[[torch.dtype, int], list[tuple[Tensor, Tensor]]]] = {}  # parameters and gradients


def shared(function: Callable[..., Any]) -> Callable[..., Any]:
    SHARED[function.__name__] = function
    return function


@shared
def two_parameters_in_one_place(dtype: torch.dtype, n: int) -> list[tuple[Tensor, Tensor]]:
    x = numbers((n,), dtype, 1)
    return [(x, numbers((n,), dtype, 2)), (x, numbers((n,), dtype, 3))]


@shared
def parameters_that_overlap(dtype: torch.dtype, n: int) -> list[tuple[Tensor, Tensor]]:
    x, shift = numbers((n + n // 3,), dtype, 1), n // 3
    return [(x[:n], numbers((n,), dtype, 2)), (x[shift:], numbers((n,), dtype, 3)), (x[7:8], numbers((1,), dtype, 4))]


@shared
def a_parameter_and_its_transpose(dtype: torch.dtype, n: int) -> list[tuple[Tensor, Tensor]]:
    x = numbers((4, n // 4), dtype, 1)
    return [(x, numbers((4, n // 4), dtype, 2)), (x.t(), numbers((n // 4, 4), dtype, 3))]


@shared
def interleaved_columns(dtype: torch.dtype, n: int) -> list[tuple[Tensor, Tensor]]:
    x, g = numbers((n, 2), dtype, 1), numbers((n, 2), dtype, 2)
    return [(x[:, 0], g[:, 0]), (x[:, 1], g[:, 1])]


@shared
def one_gradient_for_two(dtype: torch.dtype, n: int) -> list[tuple[Tensor, Tensor]]:
    g = numbers((n,), dtype, 3)
    return [(numbers((n,), dtype, 1), g), (numbers((n,), dtype, 2), g)]


@shared
def gradients_that_overlap(dtype: torch.dtype, n: int) -> list[tuple[Tensor, Tensor]]:
    g = numbers((n + 5,), dtype, 3)
    return [(numbers((n,), dtype, 1), g[5:]), (numbers((n,), dtype, 2), g[:n])]


@shared
def a_parameter_as_gradient_of_a_later_one(dtype: torch.dtype, n: int) -> list[tuple[Tensor, Tensor]]:
    x = numbers((n,), dtype, 1)
    return [(x, numbers((n,), dtype, 2)), (numbers((n,), dtype, 3), x)]


@shared
def a_parameter_as_gradient_of_an_earlier_one(dtype: torch.dtype, n: int) -> list[tuple[Tensor, Tensor]]:
    return a_parameter_as_gradient_of_a_later_one(dtype, n)[::-1]


def shared_steps(
    make: Callable[..., Any], dtype: torch.dtype, how: str, n: int, share_state: bool, zero_grad: str | None
) -> list[Snapshot]:
    """Three steps, with zeroing in ``step`` where the optimizer is ours, else after it."""
    params, grads = (list(xs) for xs in zip(*SHARED[how](dtype, n), strict=True))
    params = [Parameter(x) for x in params]
    optimizer, result = make(params), []
    for _ in range(3):
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        if isinstance(optimizer, FusedStep):
            optimizer.step(zero_grad=zero_grad)
        else:
            optimizer.step()
            if zero_grad is not None:
                optimizer.zero_grad(set_to_none=zero_grad == "to_none")
        result.append(snapshot(optimizer))
        if share_state and params[0].shape == params[1].shape:
            own = optimizer.state[params[0]]
            optimizer.state[params[1]].update({name: x for name, x in own.items() if x.dim() > 0})
    return result


@pytest.mark.parametrize("how", SHARED)
@pytest.mark.parametrize("zero_grad", [None, "to_zero", "to_none"])
@pytest.mark.parametrize("share_state", [False, True], ids=["own_state", "one_state"])
@of_drivers(one_per_class())
def test_memory_shared_between_parameters(
    case: Case, dtype: torch.dtype, share_state: bool, zero_grad: str | None, how: str
) -> None:
    """One after the other, as torch's for-loop does; zeros come last."""
    arguments = (dtype, how, 100, share_state, zero_grad)
    with backend(best_instruction_set()), numbers_in_double(case):
        actual = shared_steps(case.make, *arguments)
    with backend("reference"), numbers_in_double(case):
        assert_same_steps(actual, shared_steps(case.make, *arguments))
    if dtype == torch.float64:
        with numbers_in_double(case):
            expected = shared_steps(case.make_exact, *arguments)[-1]
        for mine, torchs in zip(actual[-1], expected, strict=True):
            for name, x in mine.items():
                torch.testing.assert_close(x, torchs[name], rtol=1e-9, atol=1e-12, check_dtype=False)


@pytest.mark.parametrize("how", SHARED)
@pytest.mark.parametrize("zero_grad", [None, "to_zero"])
@of_cases(for_drivers(one_per_class()))
def test_large_memory_shared_between_parameters(case: Case, zero_grad: str | None, how: str) -> None:
    """Threads do not get into each other's way."""
    arguments = (torch.float32, how, 2 * PER_THREAD, False, zero_grad)
    with threads(3), backend(best_instruction_set()):
        actual = shared_steps(case.make, *arguments)
    with backend("reference"):
        assert_same_steps(actual, shared_steps(case.make, *arguments))
