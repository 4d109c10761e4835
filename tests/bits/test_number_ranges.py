"""Options and step counts that the arithmetic cannot hold raise before anything is written, where torch raises."""

from __future__ import annotations

import math
from typing import Any

import helpers
import pytest
import torch
from helpers import Twins, assert_optimizers_match, everything_of, params_of, randn
from torch.nn import Parameter

import fusedoptim

path = helpers.path
pytestmark = pytest.mark.usefixtures("path", "one_thread")

MODULES: list[Any] = [fusedoptim, torch.optim]
NARROW = [torch.float32, torch.bfloat16, torch.float16]
ERRORS = (RuntimeError, ValueError, OverflowError)
of_narrow = pytest.mark.parametrize("dtype", NARROW, ids=str)
of_steps_before = pytest.mark.parametrize("steps_before", [0, 2])
LARGEST = torch.finfo(torch.float32).max


def optimizer_of(module: Any, name: str, dtypes: list[torch.dtype], steps_before: int, **options: Any) -> Any:
    """Two groups, of which only the second gets other options; the first has float64 parameters."""
    momentum = {"momentum": 0.9} if name == "SGD" else {}
    first = [Parameter(randn((3,), 1, torch.float64))]
    second = [Parameter(randn((4, 2), 2 + i, dtype)) for i, dtype in enumerate(dtypes)]
    optimizer = getattr(module, name)([{"params": first}, {"params": second}], lr=0.1, **{**momentum, **options})
    for seed in range(steps_before + 1):
        for i, p in enumerate(params_of(optimizer)):
            p.grad = randn(p.shape, 10 * seed + i, p.dtype)
        if seed < steps_before:
            optimizer.step()
    return optimizer


def assert_refused(optimizer: Any, match: str, errors: Any = ERRORS) -> None:
    before = everything_of(optimizer)
    for zero_grad in (None, "to_zero", "to_none"):
        with pytest.raises(errors, match=match):
            optimizer.step(zero_grad=zero_grad)
        assert everything_of(optimizer) == before


TOO_LARGE: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD lr": ("SGD", {"lr": 1e39}),
    "SGD lr, negative": ("SGD", {"lr": -1e39}),
    "SGD lr, far": ("SGD", {"lr": 1e300}),
    "SGD lr, a Tensor": ("SGD", {"lr": torch.tensor(1e39, dtype=torch.float64)}),
    "SGD weight_decay": ("SGD", {"weight_decay": 1e39}),
    "SGD momentum": ("SGD", {"momentum": 1e39, "nesterov": True}),
    "Adam lr": ("Adam", {"lr": 1e38}),
    "Adam lr, far": ("Adam", {"lr": 1e300}),
    "Adam lr, a Tensor": ("Adam", {"lr": torch.tensor(1e38, dtype=torch.float64)}),
    "Adam weight_decay": ("Adam", {"weight_decay": 1e39}),
    "AdamW lr": ("AdamW", {"lr": 1e38}),
}
of_too_large = pytest.mark.parametrize(("name", "options"), TOO_LARGE.values(), ids=TOO_LARGE)


@of_too_large
@of_narrow
@of_steps_before
def test_a_number_that_float_cannot_hold(
    name: str, options: dict[str, Any], dtype: torch.dtype, steps_before: int
) -> None:
    """For SGD the number itself, for Adam ``lr / (1 - beta1^t)``."""
    ours, theirs = (optimizer_of(module, name, [dtype], steps_before) for module in MODULES)
    for optimizer in (ours, theirs):
        optimizer.param_groups[1].update(options)
    with pytest.raises(RuntimeError, match="without overflow"):
        theirs.step()
    assert_refused(ours, rf"(?s)(?=.*{next(iter(options))})(?=.*group 1)")


@of_too_large
@of_steps_before
def test_float64_parameters_take_it(name: str, options: dict[str, Any], steps_before: int) -> None:
    ours, theirs = (optimizer_of(module, name, [torch.float64] * 2, steps_before) for module in MODULES)
    for optimizer in (ours, theirs):
        optimizer.param_groups[1].update(options)
        optimizer.step()
    assert_optimizers_match(ours, theirs)


@pytest.mark.parametrize("dampening", [1e39, -1e39])
@of_narrow
def test_dampening_is_refused_from_the_first_step_on(dampening: float, dtype: torch.dtype) -> None:
    """Torch takes the first, which does not need it, and raises in the second."""
    ours, theirs = (optimizer_of(module, "SGD", [dtype], 0, dampening=dampening) for module in MODULES)
    theirs.step()
    with pytest.raises(RuntimeError, match="without overflow"):
        theirs.step()
    ours.param_groups[0]["dampening"] = 0.0
    assert_refused(ours, "(?s)(?=.*dampening)(?=.*group 1)")


WITH_INFINITY: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD momentum": ("SGD", {"momentum": 1e39}),
    "Adam eps": ("Adam", {"eps": 1e39}),
    "AdamW weight_decay": ("AdamW", {"weight_decay": 1e40}),
}


@pytest.mark.parametrize(("name", "options"), WITH_INFINITY.values(), ids=WITH_INFINITY)
@of_narrow
def test_what_torch_computes_with_infinity_is_refused(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    optimizer = optimizer_of(fusedoptim, name, [dtype], 1)
    optimizer.param_groups[1].update(options)
    assert_refused(optimizer, rf"(?s)without overflow(?=.*{next(iter(options))})(?=.*group 1)")


def test_one_parameter_that_cannot_is_enough() -> None:
    optimizer = optimizer_of(fusedoptim, "SGD", [torch.float64, torch.float32], 1)
    optimizer.param_groups[1]["lr"] = 1e39
    assert_refused(optimizer, "(?s)(?=.*lr)(?=.*group 1)")


@pytest.mark.parametrize("steps_before", [0, 1])
def test_a_group_that_takes_no_step_may_hold_it(steps_before: int) -> None:
    ours, theirs = (optimizer_of(module, "SGD", [torch.float32], steps_before) for module in MODULES)
    for optimizer in (ours, theirs):
        optimizer.param_groups[1].update(lr=1e39, weight_decay=1e39)
        optimizer.param_groups[1]["params"][0].grad = None
        optimizer.step()
    assert_optimizers_match(ours, theirs)


# What torch takes: whose product overflows, or whose sum, or what the count of steps has made small enough.
TAKEN: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD largest lr": ("SGD", {"lr": LARGEST}),
    "SGD dampening of no momentum": ("SGD", {"momentum": 0, "dampening": 1e39}),
    "Adam lr": ("Adam", {"lr": 1e37}),
    "AdamW weight_decay, no lr": ("AdamW", {"weight_decay": 1e39, "lr": 0.0}),
    **{
        f"{name} {option} {value}": (name, {option: value})
        for name, option in [
            ("SGD", "lr"), ("SGD", "weight_decay"), ("SGD", "momentum"), ("SGD", "dampening"),
            ("Adam", "lr"), ("Adam", "weight_decay"), ("Adam", "eps"), ("AdamW", "lr"), ("AdamW", "weight_decay"),
        ]
        for value in (math.inf, -math.inf, math.nan)
    },
}  # fmt: skip


@pytest.mark.parametrize(("name", "options"), TAKEN.values(), ids=TAKEN)
@of_steps_before
def test_what_torch_takes_is_taken(name: str, options: dict[str, Any], steps_before: int) -> None:
    """Infinities and NaN among it."""
    ours, theirs = (optimizer_of(module, name, [torch.float32], steps_before) for module in MODULES)
    for optimizer in (ours, theirs):
        optimizer.param_groups[1].update(options)
        optimizer.step()
    assert_optimizers_match(ours, theirs)


def test_late_steps_take_a_rate_that_early_ones_do_not() -> None:
    twins = Twins("Adam", {})
    twins.step()
    for optimizer in twins:
        optimizer.param_groups[0]["lr"] = 1e38
        for state in optimizer.state.values():
            state["step"].fill_(1000)
    twins.step()


# Counts of steps.


@pytest.mark.parametrize("count", [-1.0, -2.0, -5.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_negative_count_of_steps(dtype: torch.dtype, count: float) -> None:
    ours, theirs = (optimizer_of(module, "Adam", [dtype] * 2, 1) for module in MODULES)
    for optimizer in (ours, theirs):
        optimizer.state[optimizer.param_groups[1]["params"][1]]["step"].fill_(count)
    with pytest.raises((RuntimeError, ZeroDivisionError)):
        theirs.step()
    assert_refused(ours, rf"(?s)(?=.*step)(?=.*{count:g})(?=.*parameter 1 of group 1)")


def test_a_count_of_several_elements() -> None:
    """It is torch's error; the kernels would read the first."""
    optimizer = optimizer_of(fusedoptim, "Adam", [torch.float32] * 2, 1)
    param = optimizer.param_groups[1]["params"][1]
    optimizer.state[param]["step"] = torch.ones(2)
    before = param.detach().clone()
    with pytest.raises((RuntimeError, ValueError), match=r"elements? .*converted to .*[Ss]calar"):
        optimizer.step()
    assert torch.equal(param, before)


# Betas: torch takes some that its constructor refuses, and divides by zero or goes on with complex numbers for others.


@pytest.mark.parametrize("value", [1.0, 1.5, -0.1, 1e39, torch.tensor(1.5)], ids=str)
@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@of_steps_before
def test_betas_outside_of_their_range(value: Any, position: int, dtype: torch.dtype, steps_before: int) -> None:
    optimizer = optimizer_of(fusedoptim, "Adam", [dtype], steps_before)
    betas = [0.9, 0.99]
    betas[position] = value
    optimizer.param_groups[1]["betas"] = tuple(betas)
    number = str(float(value)).replace("+", r"\+")
    assert_refused(optimizer, rf"(?s)(?=.*betas?)(?=.*{number})(?=.*group 1)", ValueError)
    optimizer.param_groups[1]["betas"] = (0.0, 0.99)
    optimizer.step()
