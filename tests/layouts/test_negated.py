"""Lazily negated tensors: their memory holds the opposite of what they are. Each may be anything that a step reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from helpers import assert_optimizers_match, assert_tensors_match, everything_of, params_of, randn
from torch import Tensor
from torch.nn import Parameter

import fusedoptim

path = helpers.path
pytestmark = pytest.mark.usefixtures("path", "one_thread")

MODULES: list[Any] = [fusedoptim, torch.optim]
OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
    "Adam": {"lr": 0.1, "weight_decay": 0.1, "amsgrad": True},
}
STATE = {"SGD": ["momentum_buffer"], "Adam": ["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"]}
SHAPES = [(3, 5), (), (1,), (1, 4, 1), (5, 3)]


def neg_view(x: Tensor) -> Tensor:
    return torch._neg_view(-x)


def part(x: Tensor) -> Tensor:
    """Of a larger one, from its middle."""
    negated = torch._neg_view(-torch.cat([torch.ones(3), x.flatten(), torch.ones(2)]))
    return negated.as_strided(x.shape, x.stride(), 3)


def transposed(x: Tensor) -> Tensor:
    return torch._neg_view(-x.t().contiguous()).t() if x.dim() == 2 else torch._neg_view(-x)


def gaps(x: Tensor) -> Tensor:
    return torch._neg_view(-x.repeat_interleave(2).view(*x.shape, 2)).select(-1, 0)


def imag(x: Tensor) -> Tensor:
    """As users come by it; of one element it looks contiguous."""
    return torch.complex(torch.zeros_like(x), -x).conj().imag


KINDS = [neg_view, part, transposed, gaps, imag]
of_kinds = pytest.mark.parametrize("kind", KINDS)
of_cases = pytest.mark.parametrize("name", OPTIONS)
of_resets = pytest.mark.parametrize("zero_grad", [None, "to_zero", "to_none"])


def set_grads(optimizer: Any, seed: int, wrap: Callable[[Tensor], Tensor] = lambda x: x) -> None:
    """Every second gradient is wrapped, the first among them."""
    for i, p in enumerate(params_of(optimizer)):
        p.grad = wrap(randn(p.shape, 10 * seed + i)) if i % 2 == 0 else randn(p.shape, 10 * seed + i)


def step(optimizer: Any, zero_grad: str | None) -> None:
    if isinstance(optimizer, fusedoptim.step.FusedStep):
        optimizer.step(zero_grad=zero_grad)
    else:
        optimizer.step()
        if zero_grad is not None:
            optimizer.zero_grad(set_to_none=zero_grad == "to_none")


def assert_match(ours: Any, theirs: Any) -> None:
    """Numbers and, with torch's, what is still negated."""
    assert_optimizers_match(ours, theirs)
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        assert p.is_neg() == q.is_neg()
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            assert p.grad.is_neg() == q.grad.is_neg()
            assert_tensors_match(p.grad, q.grad, False, "gradient")
        for key, value in ours.state[p].items():
            assert value.is_neg() == theirs.state[q][key].is_neg()


def twins(name: str, negated: Callable[[Tensor], Tensor] = lambda x: x, steps: int = 1, shapes: Any = SHAPES) -> Any:
    """Ours and torch's, with every second parameter negated."""
    result = []
    for module in MODULES:
        values = [randn(shape, i) for i, shape in enumerate(shapes)]
        parameters = [Parameter(negated(x)) if i % 2 == 0 else Parameter(x) for i, x in enumerate(values)]
        optimizer = getattr(module, name)(parameters, **OPTIONS[name])
        for seed in range(steps):
            set_grads(optimizer, seed)
            optimizer.step()
        result.append(optimizer)
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_these_tensors_are_negated(kind: Any) -> None:
    for i, shape in enumerate(SHAPES):
        x = randn(shape, i)
        assert kind(x).is_neg()
        assert torch.equal(kind(x), x)


@of_cases
@of_kinds
@pytest.mark.parametrize("steps_before", [0, 1])
def test_parameters(name: str, kind: Any, steps_before: int) -> None:
    both = twins(name, kind, steps_before)
    for seed in (7, 8):
        for optimizer in both:
            set_grads(optimizer, seed)
            optimizer.step()
        assert_match(*both)


@of_cases
@of_kinds
@of_resets
@pytest.mark.parametrize("steps_before", [0, 1])
def test_gradients(name: str, kind: Any, zero_grad: str | None, steps_before: int) -> None:
    both = twins(name, steps=steps_before)
    for seed in (7, 8):
        for optimizer in both:
            set_grads(optimizer, seed, kind)
            step(optimizer, zero_grad)
        assert_match(*both)


@of_kinds
def test_parameters_and_gradients(kind: Any) -> None:
    both = twins("Adam", kind)
    for optimizer in both:
        set_grads(optimizer, 7, kind)
        step(optimizer, "to_zero")
    assert_match(*both)


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in STATE.items() for key in keys])
@of_kinds
def test_state(name: str, key: str, kind: Any) -> None:
    both = twins(name)
    for optimizer in both:
        for p in params_of(optimizer)[::2]:
            optimizer.state[p][key] = kind(optimizer.state[p][key])
    for seed in (7, 8):
        for optimizer in both:
            set_grads(optimizer, seed)
            optimizer.step()
        assert_match(*both)


@pytest.mark.parametrize(
    ("name", "option"),
    [("SGD", "lr"), ("SGD", "weight_decay"), ("SGD", "momentum"), ("Adam", "lr"), ("Adam", "betas"), ("Adam", "eps")],
)
@pytest.mark.parametrize("shape", [(), (1,)])
@of_kinds
def test_options(name: str, option: str, shape: Any, kind: Any) -> None:
    both = twins(name)
    number = kind(torch.full(shape, 0.5))
    results = []
    for optimizer in both:
        optimizer.param_groups[0][option] = (number, 0.99) if option == "betas" else number
        set_grads(optimizer, 7)
        try:
            optimizer.step()
            results.append(None)
        except Exception as error:  # torch takes no tensors of one dimension as betas, for one
            results.append(error)
    if results[1] is None:
        assert results[0] is None, results[0]
        assert_match(*both)


@of_kinds
def test_zeroing(kind: Any) -> None:
    both = twins("SGD")
    for optimizer in both:
        set_grads(optimizer, 7, kind)
        optimizer.zero_grad(set_to_none=False)
    assert_match(*both)
    assert not any(p.grad.any() for p in params_of(both[0]))


@of_cases
@of_kinds
@of_resets
@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("shape", [(3, 5), (1,)])
def test_unscaling(name: str, kind: Any, zero_grad: str | None, fused: bool | None, shape: Any) -> None:
    """What ``GradScaler`` leaves to a fused step: taken as it is, or refused as by torch's, before anything is written.

    Torch's fused kernels take no negated tensors, and its for-loop no scale.
    """
    ours, theirs = twins(name, shapes=[shape])
    ours.param_groups[0]["fused"] = fused
    for optimizer in (ours, theirs):
        set_grads(optimizer, 7, kind)
    ours.grad_scale, ours.found_inf = torch.tensor(8.0), torch.tensor(0.0)
    before = everything_of(ours)
    try:
        step(ours, zero_grad)
    except (RuntimeError, AssertionError):
        assert everything_of(ours) == before
        return
    for p in params_of(theirs):
        p.grad.div_(8)
    step(theirs, zero_grad)
    assert_match(ours, theirs)


@of_cases
@of_kinds
def test_a_negated_scale(name: str, kind: Any) -> None:
    ours, theirs = twins(name)
    for optimizer in (ours, theirs):
        set_grads(optimizer, 7)
    ours.grad_scale, ours.found_inf = kind(torch.tensor(8.0)), kind(torch.tensor(0.0))
    for p in params_of(theirs):
        p.grad.div_(8)
    for optimizer in (ours, theirs):
        optimizer.step()
    assert_match(ours, theirs)


@of_kinds
def test_a_negated_number_says_that_the_step_is_skipped(kind: Any) -> None:
    optimizer, _ = twins("Adam")
    optimizer.found_inf = kind(torch.tensor(1.0))
    before = everything_of(optimizer)
    optimizer.step()
    assert everything_of(optimizer) == before
