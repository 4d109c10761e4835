"""The kernels of every instruction set return the bits of the reference: any rule, dtype, size, place, thread count.

The reference runs the equations on whole tensors, so it has no tails, blocks or chunks to get wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from cases import (
    BLOCK_SIZES,
    CASES,
    CHUNK,
    CHUNK_SIZES,
    PER_THREAD,
    SMALL_SIZES,
    Case,
    Layout,
    Placed,
    Snapshot,
    any_bits,
    assert_follows,
    assert_same,
    backend,
    bits_equal,
    everything,
    fail_on,
    numbers,
    of_cases,
    of_dtypes,
    one_per_class,
    parameters,
    set_gradients,
    snapshot,
    special_values,
    take_steps,
    tensors,
    threads,
)
from torch import Tensor
from torch.nn import Parameter

pytestmark = pytest.mark.usefixtures("one_thread", "kernels_only")


# ---- the table itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", sorted({case.cls for case in CASES}, key=str), ids=lambda cls: cls.__name__)
def test_the_table_covers_every_hyper_parameter(cls: type) -> None:
    """Each hyper-parameter is non-default in some row, and some row has all of them, but one that excludes another."""
    rows = [case.hyper_parameters() for case in CASES if case.cls is cls]
    changed = [{name for name, (default, value) in row.items() if value is not default} for row in rows]
    assert set().union(*changed) == set(rows[0])
    assert max(map(len, changed)) >= len(rows[0]) - 1


# ---- rules and dtypes -----------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def reference_steps(case: Case, dtype: torch.dtype, sizes: tuple[int, ...], count: int) -> list[Snapshot]:
    """The reference's steps, computed once for all instruction sets."""
    return take_steps(case.make(parameters(sizes, dtype)), "reference", count)


@of_cases()
@of_dtypes
def test_every_case(case: Case, dtype: torch.dtype, instruction_set: str) -> None:
    """Parameters of all sizes around the vector widths, together in one optimizer."""
    expected = reference_steps(case, dtype, tuple(SMALL_SIZES), 4)
    assert_follows(case.make(parameters(SMALL_SIZES, dtype)), instruction_set, expected)


@of_cases(everything())
@of_dtypes
def test_sizes_around_blocks_and_chunks(case: Case, dtype: torch.dtype, instruction_set: str) -> None:
    """Large and small parameters together in one optimizer: some claimed in pieces, some many at once."""
    sizes = (5, *CHUNK_SIZES, 0, *BLOCK_SIZES, 1)
    expected = reference_steps(case, dtype, sizes, 2)
    assert_follows(case.make(parameters(sizes, dtype)), instruction_set, expected)


@pytest.mark.parametrize("size", [*SMALL_SIZES, *CHUNK_SIZES])
@of_cases(one_per_class())
@of_dtypes
def test_one_parameter_alone(case: Case, dtype: torch.dtype, size: int, instruction_set: str) -> None:
    expected = reference_steps(case, dtype, (size,), 2)
    assert_follows(case.make(parameters([size], dtype)), instruction_set, expected)


@of_cases(everything())
@of_dtypes
def test_parameters_at_different_steps(case: Case, dtype: torch.dtype, instruction_set: str) -> None:
    """Parameters whose gradients begin late or come now and then count their own steps."""

    def steps(name: str) -> list[Snapshot]:
        params = parameters([17, 33, 5, 64], dtype)
        optimizer, result = case.make(params), []
        with backend(name):
            for step in range(6):
                set_gradients(params, step)
                for i, p in enumerate(params):
                    if step < i or (step + i) % 3 == 0:
                        p.grad = None
                optimizer.step()
                result.append(snapshot(optimizer))
        return result

    for step, (mine, wanted) in enumerate(zip(steps(instruction_set), steps("reference"), strict=True)):
        assert_same(mine, wanted, f"step {step + 1}, ")


@of_dtypes
def test_groups_with_different_hyper_parameters(dtype: torch.dtype, instruction_set: str) -> None:
    """Every case of a class is a group of one optimizer."""
    for cls in {case.cls for case in CASES}:
        cases = [case for case in CASES if case.cls is cls]

        def optimizer(cases: list[Case] = cases, cls: Any = cls) -> Any:
            groups = zip(parameters([19] * len(cases), dtype), cases, strict=True)
            return cls([{"params": [p], **case.kwargs} for p, case in groups])

        assert_follows(optimizer(), instruction_set, take_steps(optimizer(), "reference"))


# ---- values ---------------------------------------------------------------------------------------------------------


@of_cases()
@of_dtypes
def test_special_values(case: Case, dtype: torch.dtype, instruction_set: str) -> None:
    """Each special value as parameter meets each as gradient, and in the steps after it, as state, each again."""
    values = special_values(dtype)
    grid = torch.cartesian_prod(values, values)

    def steps(name: str) -> list[Snapshot]:
        param = Parameter(grid[:, 0].clone())
        optimizer, result = case.make([param]), []
        with backend(name):
            for step in range(3):
                param.grad = grid[:, 1].roll(step * 7).clone()
                optimizer.step()
                result.append(snapshot(optimizer))
                param.detach().copy_(grid[:, 0])
        return result

    for step, (mine, wanted) in enumerate(zip(steps(instruction_set), steps("reference"), strict=True)):
        assert_same(mine, wanted, f"step {step + 1}, ")


@of_cases()
@of_dtypes
def test_any_bits(case: Case, dtype: torch.dtype, instruction_set: str) -> None:
    """Arbitrary bit patterns as parameter, gradient and state."""
    size = 2051

    def steps(name: str) -> list[Snapshot]:
        param = Parameter(any_bits(size, dtype, 1))
        optimizer, result = case.make([param]), []
        with backend(name):
            for step in range(3):
                param.grad = any_bits(size, dtype, 10 + step)
                optimizer.step()
                result.append(snapshot(optimizer))
                for i, x in enumerate(tensors(optimizer)[0].values()):
                    if x.dim() > 0:
                        x.copy_(any_bits(size, dtype, 100 + 10 * step + i))
        return result

    for step, (mine, wanted) in enumerate(zip(steps(instruction_set), steps("reference"), strict=True)):
        assert_same(mine, wanted, f"step {step + 1}, ")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_all_numbers_of_a_small_dtype(dtype: torch.dtype, instruction_set: str) -> None:
    """Every bit pattern there is comes through load and store unchanged, and its sum with another rounds right.

    With lr = -1, SGD is p + g: one addition in float and one rounding to the dtype.
    """
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    case = next(case for case in CASES if case.id == "SGD-defaults")
    for grad in (torch.full_like(every, -0.0), every.roll(64), every.roll(128 + 1), every.flip(0), every.roll(-1023)):
        param = Parameter(every.clone())
        param.grad = grad.clone()
        optimizer = case.make([param])
        optimizer.param_groups[0]["lr"] = -1.0
        with backend(instruction_set):
            optimizer.step()
        expected = (every.double() + grad.double()).float().to(dtype)  # the sum of two such numbers needs no more bits
        assert bits_equal(param, expected).all()


# ---- places ---------------------------------------------------------------------------------------------------------


@of_cases()
@of_dtypes
def test_position_does_not_matter(case: Case, dtype: torch.dtype, instruction_set: str) -> None:
    """Slots that all hold one value hold one value after the step, in tensors of any size and at any alignment."""
    sizes = [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129]
    pairs = zip(numbers(12, dtype, 5).tolist(), numbers(12, dtype, 6).tolist(), strict=True)
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


def misaligned(case: Case, params: Iterable[Tensor], offset: int) -> tuple[Any, list[Placed]]:
    """An optimizer whose tensors, state included, begin ``offset`` elements into buffers with guards."""
    placed: list[Placed] = []

    def place(x: Tensor) -> Tensor:
        placed.append(Placed(x.detach(), Layout((0,), offset=offset)))
        return placed[-1].view

    optimizer = case.make([Parameter(place(p)) for p in params])
    with backend("reference"):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    for p in optimizer.param_groups[0]["params"]:
        p.grad = place(p.grad)
        for name, x in optimizer.state[p].items():
            if x is not None and x.dim() > 0:
                optimizer.state[p][name] = place(x)
    for each in placed:
        each.forget()
    return optimizer, placed


@pytest.mark.parametrize("offset", [1, 2, 3, 5, 7])
@of_cases(everything())
@of_dtypes
def test_views_that_begin_misaligned(case: Case, dtype: torch.dtype, offset: int, instruction_set: str) -> None:
    """The bits are those of aligned tensors, and the elements around the views stay as they are."""
    sizes = [0, 1, 3, 8, 15, 17, 33, 65, BLOCK_SIZES[-1]]

    def steps(name: str, offset: int, **options: Any) -> tuple[list[Snapshot], list[Placed]]:
        optimizer, placed = misaligned(case, parameters(sizes, dtype), offset)
        result = []
        with backend(name):
            for step in range(2):
                for i, p in enumerate(optimizer.param_groups[0]["params"]):
                    p.grad.copy_(numbers(p.numel(), dtype, 100 * step + i))
                optimizer.step(**options)
                result.append(snapshot(optimizer))
        return result, placed

    expected, _ = steps("reference", 0)
    actual, placed = steps(instruction_set, offset)
    for mine, wanted in zip(actual, expected, strict=True):
        assert_same(mine, wanted)
    expected, _ = steps("reference", 0, zero_grad="to_zero")
    actual, also_placed = steps(instruction_set, offset, zero_grad="to_zero")
    for mine, wanted in zip(actual, expected, strict=True):
        assert_same(mine, wanted)
    fail_on([line for each in (*placed, *also_placed) if (line := each.guard_difference()) is not None])


# ---- threads --------------------------------------------------------------------------------------------------------

THREADED_SIZES = [3, 5 * PER_THREAD + 7, 0, *[65] * 40, 2 * CHUNK + 1, 1]


@of_cases(one_per_class())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"zero_grad": "to_zero"}], ids=["step", "zeroing"])
def test_any_number_of_threads(case: Case, dtype: torch.dtype, options: dict[str, Any], instruction_set: str) -> None:
    """1, 2, 3 and 5 threads give the bits of the reference."""
    expected = threaded_reference(case, dtype, "zero_grad" in options)
    for count in (1, 2, 3, 5):
        optimizer = case.make(parameters(THREADED_SIZES, dtype))
        with threads(count):
            actual = take_steps(optimizer, instruction_set, len(expected), **options)
        for mine, wanted in zip(actual, expected, strict=True):
            assert_same(mine, wanted, f"{count} threads, ")


@functools.lru_cache(maxsize=2)
def threaded_reference(case: Case, dtype: torch.dtype, zeroing: bool) -> list[Snapshot]:
    options = {"zero_grad": "to_zero"} if zeroing else {}
    return take_steps(case.make(parameters(THREADED_SIZES, dtype)), "reference", 2, **options)


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


@of_cases()
@of_dtypes
@pytest.mark.parametrize("how", ["to_zero", "to_none"])
def test_step_with_zero_grad(case: Case, dtype: torch.dtype, how: str, instruction_set: str) -> None:
    """``step(zero_grad=…)`` equals ``step()`` and ``zero_grad()`` after it, on the kernels and on the reference."""
    sizes = [0, 1, 9, 33, 65]

    def steps(name: str, together: bool) -> list[Snapshot]:
        params = parameters(sizes, dtype)
        optimizer, result = case.make(params), []
        with backend(name):
            for step in range(3):
                set_gradients(params, step)
                if together:
                    optimizer.step(zero_grad=how)
                else:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=how == "to_none")
                result.append(snapshot(optimizer))
        return result

    expected = steps("reference", together=False)
    grads = [entry.get("grad") for entry in expected[-1]]
    assert all(g is None if how == "to_none" else not g.any() for g in grads)
    for name, together in [("reference", True), (instruction_set, False), (instruction_set, True)]:
        for mine, wanted in zip(steps(name, together), expected, strict=True):
            assert_same(mine, wanted, f"{name}, {together=}, ")


def with_scale(optimizer: Any, grad_scale: float | None, found_inf: float | None) -> Any:
    """Set the attributes that ``torch.amp.GradScaler`` sets."""
    optimizer.grad_scale = None if grad_scale is None else torch.tensor(grad_scale)
    optimizer.found_inf = None if found_inf is None else torch.tensor(found_inf)
    return optimizer


@of_cases(everything())
@of_dtypes
@pytest.mark.parametrize("scale", [65536.0, 3.7])
@pytest.mark.parametrize("how", [None, "to_zero"])
def test_grad_scale(case: Case, dtype: torch.dtype, scale: float, how: str | None, instruction_set: str) -> None:
    """The gradients are divided first and stay divided."""
    sizes = (0, 1, 9, 33, 65, BLOCK_SIZES[-1])
    optimizers = [with_scale(case.make(parameters(sizes, dtype)), scale, 0.0) for _ in range(2)]
    expected = take_steps(optimizers[0], "reference", 2, zero_grad=how)
    assert_follows(optimizers[1], instruction_set, expected, zero_grad=how)


@of_dtypes
@pytest.mark.parametrize("scale", [65536.0, 3.7, 1e-30, 1e30])
def test_grad_scale_divides_correctly_rounded(dtype: torch.dtype, scale: float, instruction_set: str) -> None:
    """The gradient left behind is the quotient, rounded to the arithmetic type and then to the dtype of the gradient."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    grad = torch.cat([special_values(dtype), any_bits(1001, dtype, 3)])
    param = Parameter(torch.zeros_like(grad))
    param.grad = grad.clone()
    with backend(instruction_set):
        with_scale(one_per_class()[0].make([param]), scale, 0.0).step()
    divisor = torch.tensor(scale).to(wide)
    assert bits_equal(param.grad, (grad.to(wide) / divisor).to(dtype)).all()


@of_cases(everything())
@of_dtypes
@pytest.mark.parametrize("found_inf", [1.0, 2.0])
@pytest.mark.parametrize("scale", [None, 65536.0])
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_found_inf_skips_everything(
    case: Case, dtype: torch.dtype, found_inf: float, scale: float | None, first: bool, instruction_set: str
) -> None:
    """Parameters, state, its ``step`` and the gradients stay; ``found_inf`` may be a sum over devices."""
    optimizer = case.make(parameters([1, 17, 65], dtype))
    if not first:
        take_steps(optimizer, instruction_set, 1)
    set_gradients(optimizer.param_groups[0]["params"], 7)
    optimizer.param_groups[0]["params"][1].grad[0] = float("inf")
    before = snapshot(optimizer)
    with_scale(optimizer, scale, found_inf)
    with backend(instruction_set):
        optimizer.step()
        assert_same(snapshot(optimizer), before)
        optimizer.step(zero_grad="to_zero")
    for entry in before:
        entry["grad"].zero_()
    assert_same(snapshot(optimizer), before)


@of_cases(everything())
@of_dtypes
def test_steps_after_a_skipped_one(case: Case, dtype: torch.dtype, instruction_set: str) -> None:
    """A first step that overflows leaves no trace in the steps after it."""
    sizes = (1, 17, 65)
    optimizer = case.make(parameters(sizes, dtype))
    set_gradients(optimizer.param_groups[0]["params"], 9)
    with backend(instruction_set):
        with_scale(optimizer, 65536.0, 1.0).step()
    with_scale(optimizer, None, None)
    assert_follows(optimizer, instruction_set, reference_steps(case, dtype, sizes, 3))
