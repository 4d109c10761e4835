"""Losses go where they should, and where torch's for-loop brings them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import NAMES, randn
from torch import Tensor
from torch.nn import Parameter
from torch.testing._internal.common_optimizers import OptimizerErrorEnum
from torch_inputs import (
    INFOS,
    TORCHS,
    Input,
    Problem,
    assert_close,
    assert_params_close,
    not_capturable,
    of_inputs,
)

import fusedoptim

EXACT = {"rtol": 0, "atol": 0}


def tolerance(each: Input) -> dict[str, float]:
    """SGD is torch's to the bit; Adam's square root is not torch's."""
    return EXACT if each.name == "SGD" else {}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_errors(name: str, dtype: torch.dtype) -> None:
    """Every ``ErrorOptimizerInput``; messages are compared with torch's in test_dropin.py."""
    error_inputs = INFOS[name].optim_error_inputs_func(device="cpu", dtype=dtype)
    assert len(error_inputs) >= 7
    for each in error_inputs:
        assert each.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
        params, kwargs = each.optimizer_error_input.params, each.optimizer_error_input.kwargs
        params = [Parameter(torch.ones(1))] if params is None else params
        expect: Callable[..., Any] = pytest.warns if issubclass(each.error_type, Warning) else pytest.raises
        with expect(each.error_type, match=each.error_regex):
            getattr(fusedoptim, name)(params, **kwargs)


@of_inputs()
@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "strided"])
def test_goes_right_direction(each: Input, contiguous: bool) -> None:
    ours, theirs = Problem(contiguous), Problem(contiguous)
    before = ours.loss().item()
    optimizers = each.ours(ours.params), each.torchs(theirs.params)
    losses = [problem.train(optimizer, 8) for problem, optimizer in zip((ours, theirs), optimizers, strict=True)]
    assert losses[0] > before if each.maximize else losses[0] < before
    assert_params_close(*optimizers, **tolerance(each))


@of_inputs("native-fused", "foreach")
def test_goes_right_direction_with_lrsched(each: Input) -> None:
    for constructors in each.info.scheduler_inputs:
        problems = Problem(), Problem()
        before = problems[0].loss().item()
        optimizers = each.ours(problems[0].params), each.torchs(problems[1].params)
        for problem, optimizer in zip(problems, optimizers, strict=True):
            after = problem.train(optimizer, 11, [constructor(optimizer) for constructor in constructors])
            assert after > before if each.maximize else after < before
        assert_params_close(*optimizers, **tolerance(each))
        assert_close(*(float(optimizer.param_groups[0]["lr"]) for optimizer in optimizers), **EXACT)


@of_inputs(only=lambda each: each.index == 0)
def test_param_group_with_lrscheduler_goes_right_direction(each: Input) -> None:
    for constructors in each.info.scheduler_inputs:
        problems = Problem(), Problem()
        before = problems[0].loss().item()
        optimizers = []
        for problem, make in zip(problems, (each.ours, each.torchs), strict=True):
            optimizer = make([{"params": [problem.weight]}, {"params": [problem.bias], "lr": 0.01}])
            after = problem.train(optimizer, 12, [constructor(optimizer) for constructor in constructors])
            assert after < before
            optimizers.append(optimizer)
        assert_params_close(*optimizers, **tolerance(each))


@of_inputs("native", "reference", "foreach")
@pytest.mark.parametrize("shape", [(), (1, 1)], ids=str)
def test_tensor_lr(each: Input, shape: tuple[int, ...]) -> None:
    """Of any shape with one element, equal to the bit to the number in it."""
    lr = torch.full(shape, 1e-3)
    problems = Problem(), Problem()
    if each.path.id == "foreach" and each.name != "SGD":
        with pytest.raises(ValueError, match="lr as a Tensor is not supported"):
            each.ours(problems[0].params, lr=lr)
        return
    optimizers = each.ours(problems[0].params, lr=lr), each.ours(problems[1].params, lr=lr.item())
    losses = [problem.train(optimizer, 5) for problem, optimizer in zip(problems, optimizers, strict=True)]
    assert losses[0] == losses[1] != Problem().loss().item()
    assert_params_close(*optimizers, **EXACT if each.path.is_ours else {})


def rosenbrock(point: Tensor) -> Tensor:
    """Rosenbrock's function, ``(1 - x)**2 + 100 * (y - x**2)**2``."""
    x, y = point
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def sparse_gradient(point: Tensor, coordinate: int) -> Tensor:
    """One coordinate of the gradient, uncoalesced."""
    (grad,) = torch.autograd.grad(rosenbrock(point), point)
    value = grad[coordinate]
    places = [[coordinate, coordinate]]
    return torch.sparse_coo_tensor(places, torch.stack([value / 4, value - value / 4]), (2,), check_invariants=False)


def sparse_too(each: Input) -> bool:
    """Of the inputs for sparse gradients, in which torch leaves out all options but dampening, each one once."""
    return bool(each.info.supports_sparse) and (each.index == 0 or "dampening" in each.options())


@of_inputs("native", "reference", *TORCHS, only=sparse_too)
@pytest.mark.parametrize("scheduled", [False, True])
def test_rosenbrock_sparse(each: Input, scheduled: bool, left_to_torch: list[Any]) -> None:
    """Sparse gradients are left to torch; dense ones of the same numbers give the same."""
    options, constructors = each.info.metadata_for_sparse
    sparse, dense = (Parameter(torch.tensor([1.5, 1.5], dtype=torch.float64)) for _ in range(2))
    optimizers = [each.ours([p], **options) for p in (sparse, dense)]
    schedulers = [c(optimizer) for optimizer in optimizers for c in (constructors if scheduled else [])]
    steps = 40
    for step in range(steps):
        sparse.grad = sparse_gradient(sparse, step % 2)
        dense.grad = sparse_gradient(dense, step % 2).to_dense()
        for optimizer in (*optimizers, *schedulers):
            optimizer.step()
        assert_close(sparse, dense, rtol=5e-6, atol=5e-6)  # torch's: x is not x / 4 + (x - x / 4)
    assert len(left_to_torch) == (steps if each.path.is_ours else 2 * steps)
    assert rosenbrock(sparse) < 5 < 50 < rosenbrock(torch.tensor([1.5, 1.5]))


@of_inputs("native-fused", "reference-fused", only=lambda each: each.index == 0)
def test_rosenbrock_sparse_fused_is_refused(each: Input, left_to_torch: list[Any]) -> None:
    p = Parameter(torch.tensor([1.5, 1.5]))
    p.grad = sparse_gradient(p, 0)
    with pytest.raises(RuntimeError, match=r"`fused=True` requires.*sparse"):
        each.ours([p]).step()
    assert p.tolist() == [1.5, 1.5]
    assert not left_to_torch


@of_inputs("native", "reference", *TORCHS, only=not_capturable)
def test_complex(each: Input, left_to_torch: list[Any]) -> None:
    """As the same numbers viewed as real; complex and real parameters may be mixed."""
    shapes = [(10, 5, 2), (10, 2), (10, 5)]
    real = [Parameter(randn(shape, i)) for i, shape in enumerate(shapes)]
    mixed = [Parameter(torch.view_as_complex(p.detach().clone())) for p in real[:2]] + [Parameter(real[2].clone())]
    optimizers = each.ours(mixed), each.ours(real)
    for step in range(3):
        for i, (p, q) in enumerate(zip(mixed, real, strict=True)):
            q.grad = randn(q.shape, 10 * step + i)
            p.grad = torch.view_as_complex(q.grad.clone()) if p.is_complex() else q.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        for p, q in zip(mixed, real, strict=True):
            assert_close(torch.view_as_real(p) if p.is_complex() else p, q)
    assert len(left_to_torch) == (3 if each.path.is_ours else 6)


@of_inputs("native", "reference", *TORCHS, only=not_capturable)
def test_complex_2d(each: Input, left_to_torch: list[Any]) -> None:
    """A complex parameter and one for each part of it, in one function of both."""
    whole = Parameter(torch.complex(randn((2,), 1), randn((2,), 2)) / 4)
    parts = [Parameter(x.detach().clone()) for x in (whole.real, whole.imag)]
    optimizers = each.ours([whole]), each.ours(parts)
    for _ in range(3):
        rosenbrock(whole).abs().backward()
        rosenbrock(torch.complex(*parts)).abs().backward()
        assert_close(torch.stack([whole.grad.real, whole.grad.imag]), torch.stack([p.grad for p in parts]), **LOOSE)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        assert_close(torch.stack([whole.real, whole.imag]), torch.stack(parts))
    assert left_to_torch


LOOSE = {"rtol": 1e-5, "atol": 1e-4}  # gradients of some hundreds, at points that differ in the last place
