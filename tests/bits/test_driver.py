"""What the driver of the kernels adds to a rule changes no bit of it: places, threads, zeroing, scaling, skipping."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import (
    BLOCK_SIZES,
    CHUNK,
    PER_THREAD,
    Case,
    best_instruction_set,
    everything,
    for_drivers,
    of_cases,
    of_drivers,
    of_dtypes,
    of_instruction_sets,
    one_per_class,
)
from placed import Layout, Placed
from steps import (
    Snapshot,
    any_bits,
    assert_follows,
    assert_same,
    assert_same_steps,
    backend,
    bits_equal,
    fail_on,
    numbers,
    once_on_reference,
    parameters,
    set_gradients,
    snapshot,
    special_values,
    steps_of,
    take_steps,
    tensors,
    threads,
)
from torch import Tensor
from torch.nn import Parameter

import fusedoptim
from fusedoptim.reference.rule import options_of

pytestmark = pytest.mark.usefixtures("one_thread", "kernels_only")


# ---- places ---------------------------------------------------------------------------------------------------------


@of_instruction_sets
@of_drivers(everything())
def test_position_does_not_matter(case: Case, dtype: torch.dtype, instruction_set: str) -> None:
    """Slots that all hold one value hold one value after the step, in tensors of any size and at any alignment."""
    sizes = [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129]
    pairs = zip(numbers(6, dtype, 5).tolist(), numbers(6, dtype, 6).tolist(), strict=True)
    for value, slope in [*pairs, (0.0, -0.0), (1.0, float("inf"))]:
        params = [Parameter(torch.full((n + n % 5,), value, dtype=dtype)[n % 5 :]) for n in sizes]
        optimizer = case.make(params)
        with backend(instruction_set):
            for _ in range(2):
                for p in params:
                    p.grad = torch.full_like(p, slope)
                optimizer.step()
        states = tensors(optimizer)
        for name, first in states[0].items():
            together = torch.cat([entry[name].reshape(-1) for entry in states])
            assert bits_equal(together, first.reshape(-1)[:1].expand(len(together))).all(), (name, value, slope)


@once_on_reference
def misaligned_steps(
    name: str, case: Case, dtype: torch.dtype, zero_grad: str | None, offset: int
) -> tuple[list[Snapshot], list[Placed]]:
    """Steps of an optimizer whose tensors, state included, begin ``offset`` elements into buffers with guards."""
    sizes = [0, 1, 3, 8, 15, 17, 33, 65, BLOCK_SIZES[-1]]
    placed: list[Placed] = []

    def place(x: Tensor) -> Tensor:
        placed.append(Placed(x.detach(), Layout((0,), offset=offset)))
        return placed[-1].view

    params = [Parameter(place(p)) for p in parameters(sizes, dtype)]
    optimizer, result = case.make(params), []
    with backend(name):
        for step in range(3):
            for i, p in enumerate(params):
                p.grad = place(numbers(p.numel(), dtype, 100 * step + i))
            optimizer.step(zero_grad=zero_grad)
            result.append(snapshot(optimizer))
            for p in params if step == 0 else ():
                for key, x in optimizer.state[p].items():
                    if x.dim() > 0:
                        optimizer.state[p][key] = place(x)
    return result, placed


@of_instruction_sets
@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("zero_grad", [None, "to_zero"])
@of_drivers(one_per_class())
def test_views_that_begin_misaligned(
    case: Case, dtype: torch.dtype, zero_grad: str | None, offset: int, instruction_set: str
) -> None:
    """The bits are those of aligned tensors, and the elements around the views stay as they are."""
    expected, _ = misaligned_steps("reference", case, dtype, zero_grad, 0)
    actual, placed = misaligned_steps(instruction_set, case, dtype, zero_grad, offset)
    assert_same_steps(actual, expected)
    fail_on([line for each in placed if (line := each.guard_difference()) is not None])


# ---- threads --------------------------------------------------------------------------------------------------------


@once_on_reference
def steps_on_threads(
    name: str, case: Case, dtype: torch.dtype, zero_grad: str | None, count: int, sizes: tuple[int, ...]
) -> list[Snapshot]:
    with threads(count):
        return take_steps(case.make(parameters(sizes, dtype)), name, 2, zero_grad=zero_grad)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@of_cases(for_drivers(one_per_class()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("zero_grad", [None, "to_zero"])
def test_any_number_of_threads(case: Case, dtype: torch.dtype, zero_grad: str | None, count: int) -> None:
    """The bits do not depend on the number of threads; there is work enough for all of them."""
    sizes = (3, 5 * PER_THREAD + 7, 0, *[65] * 40, 2 * CHUNK + 1, 1)
    expected = steps_on_threads("reference", case, dtype, zero_grad, 1, sizes)
    assert_same_steps(steps_on_threads(best_instruction_set(), case, dtype, zero_grad, count, sizes), expected)


@of_dtypes
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_zero_grad_with_any_number_of_threads(dtype: torch.dtype, count: int) -> None:
    """All gradients become zeros, and what lies around them stays; large enough that threads share one gradient."""
    sizes = [1, (1 << 20) + 3, 0, 17, 1 << 18]
    params = parameters(sizes, dtype)
    placed = [Placed(torch.ones(n, dtype=dtype), Layout((0,), offset=1)) for n in sizes]
    for p, each in zip(params, placed, strict=True):
        p.grad = each.view
    with threads(count):
        one_per_class()[0].make(params).zero_grad(set_to_none=False)
    assert all(bits_equal(each.view, torch.zeros_like(each.view)).all() for each in placed)
    fail_on([line for each in placed if (line := each.guard_difference()) is not None])


# ---- zeroing, scaling, skipping -------------------------------------------------------------------------------------


@once_on_reference
def zeroing_steps(name: str, case: Case, dtype: torch.dtype, how: str, together: bool) -> list[Snapshot]:
    params = parameters([0, 1, 9, 33, 65], dtype)
    optimizer, result = case.make(params), []
    with backend(name):
        for step in range(3):
            set_gradients(params, step)
            optimizer.step(zero_grad=how if together else None)
            if not together:
                optimizer.zero_grad(set_to_none=how == "to_none")
            result.append(snapshot(optimizer))
    return result


@of_instruction_sets
@pytest.mark.parametrize("how", ["to_zero", "to_none"])
@of_drivers(everything())
def test_step_with_zero_grad(case: Case, dtype: torch.dtype, how: str, instruction_set: str) -> None:
    """``step(zero_grad=…)`` equals ``step()`` and ``zero_grad()`` after it, on the kernels and on the reference."""
    expected = zeroing_steps("reference", case, dtype, how, False)
    for entry in expected[-1]:
        assert "grad" not in entry if how == "to_none" else bits_equal(entry["grad"], entry["grad"] * 0).all()
    for name, together in [("reference", True), (instruction_set, False), (instruction_set, True)]:
        assert_same_steps(zeroing_steps(name, case, dtype, how, together), expected, f"{name}, {together=}, ")


def with_scale(optimizer: Any, grad_scale: float | None, found_inf: float | None) -> Any:
    """Set the attributes that ``torch.amp.GradScaler`` sets."""
    optimizer.grad_scale = None if grad_scale is None else torch.tensor(grad_scale)
    optimizer.found_inf = None if found_inf is None else torch.tensor(found_inf)
    return optimizer


@of_instruction_sets
@pytest.mark.parametrize("how", [None, "to_zero"])
@of_drivers(everything())
def test_grad_scale(case: Case, dtype: torch.dtype, how: str | None, instruction_set: str) -> None:
    """The gradients are divided first and stay divided."""
    sizes = (0, 1, 9, 33, 65, BLOCK_SIZES[-1])
    optimizers = [with_scale(case.make(parameters(sizes, dtype)), 3.7, 0.0) for _ in range(2)]
    expected = take_steps(optimizers[0], "reference", 2, zero_grad=how)
    assert_follows(optimizers[1], instruction_set, expected, zero_grad=how)


@of_instruction_sets
@pytest.mark.parametrize("scale", [65536.0, 3.7, 1e-30, 1e30])
@of_dtypes
def test_grad_scale_divides_correctly_rounded(dtype: torch.dtype, scale: float, instruction_set: str) -> None:
    """The gradient left behind is the quotient, rounded to the arithmetic type and then to that of the gradient."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    grad = torch.cat([special_values(dtype), any_bits(1001, dtype, 3)])
    param = Parameter(torch.zeros_like(grad))
    param.grad = grad.clone()
    with backend(instruction_set):
        with_scale(one_per_class()[0].make([param]), scale, 0.0).step()
    divisor = torch.tensor(scale).to(wide)
    assert bits_equal(param.grad, (grad.to(wide) / divisor).to(dtype)).all()


# In whose numbers the count of steps is not, whether or not they count.
# Whose next step does not depend on the count.
WITHOUT_STEPS = (
    fusedoptim.SGD, fusedoptim.AdamWScheduleFree, fusedoptim.Adadelta, fusedoptim.ASGD, fusedoptim.Lion,
    fusedoptim.RMSprop, fusedoptim.Rprop, fusedoptim.SGDScheduleFree,
)  # fmt: skip
# Options that decide, or that only a part of all steps has; the sign of NaN is 0.
WHAT_NAN_CHOOSES = (
    (fusedoptim.Lion, "betas"),
    (fusedoptim.AdamWScheduleFree, "lr_max"),
    (fusedoptim.SGDScheduleFree, "lr_max"),
    (fusedoptim.RAdam, "eps"),
    (fusedoptim.RMSprop, "momentum"),
    (fusedoptim.Rprop, "etas"),
    (fusedoptim.Rprop, "step_sizes"),
)
ALL_BITS_SET = struct.unpack("<d", b"\xff" * 8)[0]  # NaN; rounded like a number, the bfloat16 of it would be zero


@of_instruction_sets
@of_cases(everything())
@of_dtypes
def test_options_that_are_nan_make_nan_whatever_bits(case: Case, dtype: torch.dtype, instruction_set: str) -> None:
    """One after another, and as tensors too."""

    def optimizers() -> Iterator[Any]:
        group = case.make(parameters([67], dtype)).param_groups[0]
        for name in options_of(case.rule.update):
            value = group[name]
            for place in range(len(value)) if isinstance(value, tuple) else [None] if isinstance(value, float) else []:
                for nan in (ALL_BITS_SET, torch.tensor(ALL_BITS_SET)):
                    optimizer = case.make(parameters([67], dtype))
                    changed = nan if place is None else tuple(nan if i == place else b for i, b in enumerate(value))
                    optimizer.param_groups[0][name] = changed
                    yield name, optimizer

    for (name, mine), (_, reference) in zip(optimizers(), optimizers(), strict=True):
        expected = take_steps(reference, "reference", 2)
        if (case.cls, name) not in WHAT_NAN_CHOOSES:
            assert any(x.isnan().all() for x in expected[-1][0].values())  # RAdam: a state
        assert_follows(mine, instruction_set, expected)


@of_instruction_sets
@of_dtypes
def test_a_scale_that_is_nan_makes_nan_whatever_bits(dtype: torch.dtype, instruction_set: str) -> None:
    """Of the gradients as of the parameters, in the first step as in the next."""
    optimizer = with_scale(one_per_class()[0].make(parameters([67], dtype)), ALL_BITS_SET, 0.0)
    for seed in range(2):
        set_gradients(optimizer.param_groups[0]["params"], seed)
        with backend(instruction_set):
            optimizer.step()
        assert all(x.isnan().all() for x in tensors(optimizer)[0].values())


@of_instruction_sets
@of_cases([case for case in everything() if case.cls not in WITHOUT_STEPS])
@of_dtypes
def test_a_step_count_that_is_nan_makes_nan_whatever_bits(case: Case, dtype: torch.dtype, instruction_set: str) -> None:
    optimizer = case.make(parameters([67], dtype))
    take_steps(optimizer, instruction_set, 1)
    (param,) = optimizer.param_groups[0]["params"]
    optimizer.state[param]["step"].fill_(ALL_BITS_SET)
    set_gradients([param], 1)
    with backend(instruction_set):
        optimizer.step()
    assert param.isnan().all()


@of_cases([case for case in one_per_class() if case.cls not in WITHOUT_STEPS])
def test_a_step_count_that_is_nan_on_the_general_path(case: Case) -> None:
    param = Parameter(torch.ones(67, 2)[:, 0])
    optimizer = case.make([param])
    for _ in range(2):
        param.grad = torch.ones(67)
        optimizer.step()
        optimizer.state[param]["step"].fill_(torch.nan)
    assert param.isnan().all()


@of_cases(for_drivers(one_per_class()))
@pytest.mark.parametrize("found_inf", [1.0, 2.0])
@pytest.mark.parametrize("scale", [None, 65536.0])
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@of_dtypes
def test_found_inf_skips_everything(
    case: Case, dtype: torch.dtype, found_inf: float, scale: float | None, first: bool
) -> None:
    """Parameters, state, its ``step`` and the gradients stay; ``found_inf`` may be a sum over devices."""
    optimizer = case.make(parameters([1, 17, 65], dtype))
    if not first:
        take_steps(optimizer, best_instruction_set(), 1)
    set_gradients(optimizer.param_groups[0]["params"], 7)
    optimizer.param_groups[0]["params"][1].grad[0] = float("inf")
    before = snapshot(optimizer)
    with_scale(optimizer, scale, found_inf)
    with backend(best_instruction_set()):
        optimizer.step()
        assert_same(snapshot(optimizer), before)
        optimizer.step(zero_grad="to_zero")
    for entry in before:
        entry["grad"].zero_()
    assert_same(snapshot(optimizer), before)


@of_instruction_sets
@of_drivers(everything())
def test_steps_after_a_skipped_one(case: Case, dtype: torch.dtype, instruction_set: str) -> None:
    """A first step that overflows leaves no trace in the steps after it."""
    sizes = (1, 17, 65)
    optimizer = case.make(parameters(sizes, dtype))
    set_gradients(optimizer.param_groups[0]["params"], 9)
    with backend(instruction_set):
        with_scale(optimizer, 65536.0, 1.0).step()
    with_scale(optimizer, None, None)
    assert_follows(optimizer, instruction_set, steps_of("reference", case, dtype, sizes, 3))
