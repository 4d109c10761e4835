"""The kernels of every instruction set return the bits of the reference: any rule, dtype, size, place, thread count.

The reference runs the equations on whole tensors, so it has no tails, blocks or chunks to get wrong.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import (
    BLOCK_SIZES,
    CASES,
    CHUNK_SIZES,
    DTYPES,
    SMALL_SIZES,
    Case,
    best_instruction_set,
    everything,
    for_drivers,
    of_cases,
    of_drivers,
    of_dtypes,
    of_instruction_sets,
    one_per_class,
    ready,
)
from steps import (
    Snapshot,
    any_bits,
    assert_follows,
    assert_same,
    assert_same_steps,
    backend,
    bits_equal,
    once_on_reference,
    parameters,
    set_gradients,
    snapshot,
    special_values,
    steps_of,
    take_steps,
    tensors,
)
from torch.nn import Parameter

import fusedoptim

pytestmark = pytest.mark.usefixtures("one_thread", "kernels_only")


# ---- rules, dtypes, sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", sorted({case.cls for case in CASES}, key=str), ids=lambda cls: cls.__name__)
def test_the_table_covers_every_hyper_parameter(cls: type) -> None:
    """Each hyper-parameter is non-default in some row, and some row has all of them, but one that excludes another."""
    rows = [case.hyper_parameters() for case in CASES if case.cls is cls]
    changed = [{name for name, (default, value) in row.items() if value is not default} for row in rows]
    assert set().union(*changed) == set(rows[0])
    assert max(map(len, changed)) >= len(rows[0]) - 1


@of_instruction_sets
@of_cases()
@of_dtypes
def test_every_case(case: Case, dtype: torch.dtype, instruction_set: str) -> None:
    """Parameters of all sizes around the vector widths, together in one optimizer."""
    expected = steps_of("reference", case, dtype, tuple(SMALL_SIZES), 4)
    assert_follows(case.make(parameters(SMALL_SIZES, dtype)), instruction_set, expected)


@of_instruction_sets
@of_drivers(everything())
def test_sizes_around_blocks_and_chunks(case: Case, dtype: torch.dtype, instruction_set: str) -> None:
    """Large and small parameters together in one optimizer: some claimed in pieces, some many at once."""
    sizes = (5, *CHUNK_SIZES, 0, *BLOCK_SIZES, 1)
    expected = steps_of("reference", case, dtype, sizes, 2)
    assert_follows(case.make(parameters(sizes, dtype)), instruction_set, expected)


@pytest.mark.parametrize("size", [0, 1, 65, *CHUNK_SIZES])
@of_drivers(one_per_class())
def test_one_parameter_alone(case: Case, dtype: torch.dtype, size: int) -> None:
    expected = steps_of("reference", case, dtype, (size,), 2)
    assert_follows(case.make(parameters([size], dtype)), best_instruction_set(), expected)


@once_on_reference
def steps_with_gaps(name: str, case: Case, dtype: torch.dtype) -> list[Snapshot]:
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


@of_instruction_sets
@of_drivers(everything())
def test_parameters_at_different_steps(case: Case, dtype: torch.dtype, instruction_set: str) -> None:
    """Parameters whose gradients begin late or come now and then count their own steps."""
    assert_same_steps(steps_with_gaps(instruction_set, case, dtype), steps_with_gaps("reference", case, dtype))


@of_instruction_sets
@of_cases(everything())
@of_dtypes
def test_late_steps(case: Case, dtype: torch.dtype, instruction_set: str) -> None:
    """From the millionth step on, from where float32 cannot count further, and from a count with a fraction."""

    def steps(name: str) -> list[Snapshot]:
        optimizer, result = case.make(parameters([33], dtype)), []
        for count in (1_000_000.0, 2.0**24 - 1, 2.0**24, 2.5):
            result += take_steps(optimizer, name, 1)
            for entry in tensors(optimizer):
                if "step" in entry:
                    entry["step"].fill_(count)
        return result + take_steps(optimizer, name, 1)

    assert_same_steps(steps(instruction_set), steps("reference"))


@of_instruction_sets
@pytest.mark.parametrize("cls", sorted({case.cls for case in CASES}, key=str), ids=lambda cls: cls.__name__)
@of_dtypes
def test_groups_with_different_hyper_parameters(cls: Any, dtype: torch.dtype, instruction_set: str) -> None:
    """Every case of a class is a group of one optimizer."""

    def make() -> Any:
        cases = [case for case in CASES if case.cls is cls]
        groups = zip(parameters([19] * len(cases), dtype), cases, strict=True)
        return ready(cls([{"params": [p], **case.kwargs} for p, case in groups]))

    assert_follows(make(), instruction_set, take_steps(make(), "reference"))


@of_instruction_sets
@of_cases(for_drivers(everything()))
def test_dtypes_together(case: Case, instruction_set: str) -> None:
    """Parameters of every dtype in one group."""

    def make() -> Any:
        return case.make([p for _ in range(2) for dtype in DTYPES for p in parameters([19, 33], dtype)])

    assert_follows(make(), instruction_set, take_steps(make(), "reference"))


# ---- values ---------------------------------------------------------------------------------------------------------


@once_on_reference
def steps_over_special_values(name: str, case: Case, dtype: torch.dtype) -> list[Snapshot]:
    values = special_values(dtype)
    grid = torch.cartesian_prod(values, values)
    param = Parameter(grid[:, 0].clone())
    optimizer, result = case.make([param]), []
    with backend(name):
        for step in range(3):
            param.grad = grid[:, 1].roll(step * 7).clone()
            optimizer.step()
            result.append(snapshot(optimizer))
            param.detach().copy_(grid[:, 0])
    return result


@of_instruction_sets
@of_cases()
@of_dtypes
def test_special_values(case: Case, dtype: torch.dtype, instruction_set: str) -> None:
    """Each special value as parameter meets each as gradient, and the state that others have left."""
    expected = steps_over_special_values("reference", case, dtype)
    assert_same_steps(steps_over_special_values(instruction_set, case, dtype), expected)


@once_on_reference
def steps_over_any_bits(name: str, case: Case, dtype: torch.dtype) -> list[Snapshot]:
    size = 2051
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


@of_instruction_sets
@of_cases()
@of_dtypes
def test_any_bits(case: Case, dtype: torch.dtype, instruction_set: str) -> None:
    """Arbitrary bit patterns as parameter, gradient and state."""
    expected = steps_over_any_bits("reference", case, dtype)
    assert_same_steps(steps_over_any_bits(instruction_set, case, dtype), expected)


@of_instruction_sets
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_all_numbers_of_a_small_dtype(dtype: torch.dtype, instruction_set: str) -> None:
    """Every bit pattern comes through load and store unchanged, and its sum with another is rounded once.

    With lr = -1, SGD is p + g: one addition in float and one rounding to the dtype.
    """
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    for grad in (torch.full_like(every, -0.0), every.roll(64), every.roll(128 + 1), every.flip(0), every.roll(-1023)):
        param = Parameter(every.clone())
        param.grad = grad.clone()
        optimizer = fusedoptim.SGD([param])
        optimizer.param_groups[0]["lr"] = -1.0
        with backend(instruction_set):
            optimizer.step()
        assert bits_equal(param, (every.float() + grad.float()).to(dtype)).all()


@of_instruction_sets
def test_fma_rounds_once(instruction_set: str) -> None:
    """Where the sum of a product and a number, rounded to double and then to float, is not the sum rounded once.

    With lr = -(1 + u) and gradient (1 - u) / 2 units of the parameter, SGD adds a hair less than half a unit.
    """
    places, scales = torch.arange(64), torch.exp2(torch.arange(-40.0, 41.0))
    params = ((1 + places * 2.0**-23)[:, None] * scales).float()
    rounded_twice = 0
    for u in (2.0**-k for k in range(13, 24)):
        grads = (scales * (1 - u) * 2.0**-24).expand_as(params).contiguous()
        for sign in (1, -1):
            results = []
            for name in (instruction_set, "reference"):
                param = Parameter(params.clone())
                param.grad = sign * grads
                optimizer = fusedoptim.SGD([param])
                optimizer.param_groups[0]["lr"] = -(1 + u)
                with backend(name):
                    optimizer.step()
                results.append(snapshot(optimizer))
            assert_same(*results)
            naive = (params.double() + (1 + u) * (sign * grads).double()).float()
            rounded_twice += int((naive != results[0][0]["param"]).sum())
    assert rounded_twice > 1000
