"""Layouts as users come to have them: equal to the reference on contiguous copies, and no neighbour is touched."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import (
    DTYPES,
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
from helpers import in_child
from steps import (
    Snapshot,
    assert_same,
    assert_same_steps,
    backend,
    bits_equal,
    numbers,
    once_on_reference,
    parameters,
    set_gradients,
    snapshot,
)
from torch import Tensor
from torch.nn import Parameter

pytestmark = pytest.mark.usefixtures("one_thread", "kernels_only")

USERS: dict[str, Callable[[torch.dtype], tuple[Tensor, Tensor]]] = {}  # each makes a parameter and a gradient


def user(function: Callable[[torch.dtype], tuple[Tensor, Tensor]]) -> Callable[[torch.dtype], tuple[Tensor, Tensor]]:
    USERS[function.__name__] = function
    return function


@user
def channels_last_module(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (4, 3, 5, 5)
    return tuple(numbers(shape, dtype, i).to(memory_format=torch.channels_last) for i in (1, 2))  # type: ignore[return-value]


@user
def channels_last_gradient(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (4, 3, 5, 5)
    return numbers(shape, dtype, 1), numbers(shape, dtype, 2).to(memory_format=torch.channels_last)


@user
def one_channel(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Sizes of 1, whose strides mean nothing."""
    shape = (4, 1, 5, 1)
    return numbers(shape, dtype, 1).to(memory_format=torch.channels_last), numbers(shape, dtype, 2)


@user
def strange_strides_of_size_one(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return numbers((6,), dtype, 1).as_strided((1, 6, 1), (0, 1, 77)), numbers((1, 6, 1), dtype, 2)


@user
def transposed_parameter(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return numbers((9, 20), dtype, 1).t(), numbers((20, 9), dtype, 2)


@user
def transposed_gradient(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return numbers((9, 20), dtype, 1), numbers((20, 9), dtype, 2).t()


@user
def transposed_both(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return numbers((9, 20), dtype, 1).t(), numbers((9, 20), dtype, 2).t()


@user
def one_column(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return numbers((50, 2), dtype, 1)[..., 0], numbers((50,), dtype, 2)


@user
def both_one_column(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return numbers((50, 2), dtype, 1)[..., 0], numbers((50, 2), dtype, 2)[..., 1]


@user
def narrowed(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return numbers((10, 12), dtype, 1).narrow(1, 3, 5), numbers((14, 5), dtype, 2).narrow(0, 2, 10)


@user
def every_other_row(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return numbers((20, 6), dtype, 1)[1::2], numbers((30, 6), dtype, 2)[::3]


@user
def diagonal(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return numbers((33, 33), dtype, 1).diagonal(), numbers((33,), dtype, 2)


@user
def five_dimensions(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (2, 3, 4, 5, 6)
    return numbers(shape, dtype, 1).permute(4, 1, 3, 0, 2), numbers(shape, dtype, 2).permute(4, 1, 3, 0, 2).contiguous()


@user
def gradient_of_a_sum(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    leaf = numbers((7, 9), dtype, 1).requires_grad_()
    (grad,) = torch.autograd.grad(leaf.sum(), leaf)
    assert grad.stride() == (0, 0)
    return leaf.detach(), grad


@user
def gradient_expanded(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return numbers((700,), dtype, 1), torch.ones((), dtype=dtype).expand(700)


@user
def gradient_of_a_mean_over_rows(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return numbers((30, 40), dtype, 1), numbers((1, 40), dtype, 2).expand(30, 40)


@user
def gradient_with_overlapping_windows(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return numbers((10, 8), dtype, 1), numbers((17,), dtype, 2).unfold(0, 8, 1)


@user
def no_dimension(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return numbers((), dtype, 1), numbers((), dtype, 2)


@user
def one_element_of_many(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return numbers((5, 5), dtype, 1)[2, 3], numbers((9,), dtype, 2)[4]


@user
def one_element_expanded(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return numbers((1, 1), dtype, 1), numbers((), dtype, 2).expand(1, 1)


@user
def empty(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return numbers((0,), dtype, 1), numbers((0,), dtype, 2)


@user
def empty_in_one_dimension(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return numbers((4, 0, 3), dtype, 1), numbers((3, 0, 4), dtype, 2).permute(2, 1, 0)


@once_on_reference
def steps_as_users_lay(name: str, case: Case, dtype: torch.dtype, who: str) -> list[Snapshot]:
    """Steps on the tensors as they are made; on the reference, on contiguous copies."""
    copy = name == "reference"
    param, grad = (x.clone(memory_format=torch.contiguous_format) if copy else x for x in USERS[who](dtype))
    p = Parameter(param)
    optimizer, result = case.make([p]), []
    storages = [x.untyped_storage() for x in (param, grad)]
    before = [torch.tensor([], dtype=dtype).set_(s).clone() for s in storages]
    with backend(name):
        for _ in range(3):
            p.grad = grad
            optimizer.step()
            result.append(snapshot(optimizer))
    if not copy:
        after = [torch.tensor([], dtype=dtype).set_(s).clone() for s in storages]
        neighbours = torch.ones(len(after[0]), dtype=torch.bool)
        places = torch.arange(len(neighbours)).as_strided(param.shape, param.stride(), param.storage_offset())
        neighbours[places.flatten()] = False
        assert bits_equal(after[0][neighbours], before[0][neighbours]).all(), "neighbours of the parameter"
        assert bits_equal(after[1], before[1]).all(), "the gradient"
        assert p.data_ptr() == param.data_ptr()
    return result


@pytest.mark.parametrize("who", USERS)
@of_drivers(one_per_class())
def test_as_users_lay_them(case: Case, dtype: torch.dtype, who: str) -> None:
    expected = steps_as_users_lay("reference", case, dtype, who)
    assert_same_steps(steps_as_users_lay(best_instruction_set(), case, dtype, who), expected)


@pytest.mark.parametrize("who", USERS)
@pytest.mark.parametrize("how", ["to_zero", "to_none"])
@of_dtypes
def test_zeroing_as_users_lay_them(dtype: torch.dtype, who: str, how: str) -> None:
    """``step(zero_grad=…)`` does what ``step()`` and ``zero_grad()`` do.

    A gradient whose elements share memory may be refused instead; then nothing has been written.
    """
    case = everything()[0]

    def make() -> tuple[Any, Tensor]:
        param, grad = USERS[who](dtype)
        p = Parameter(param)
        p.grad = grad
        return case.make([p]), grad

    (optimizer, grad), (other, other_grad) = make(), make()
    before = snapshot(optimizer)
    with backend(best_instruction_set()):
        try:
            optimizer.step(zero_grad=how)
        except RuntimeError:
            assert how == "to_zero"
            assert elements_share_memory(grad)
            assert_same(snapshot(optimizer), before)
            return
        other.step()
        other.zero_grad(set_to_none=how == "to_none")
    assert_same([*snapshot(optimizer), {"grad": grad}], [*snapshot(other), {"grad": other_grad}])


def elements_share_memory(x: Tensor) -> bool:
    places = torch.arange(x.untyped_storage().nbytes()).as_strided(x.shape, x.stride())
    return len(places.unique()) < x.numel()


@of_cases(for_drivers(one_per_class()))
def test_scaled_gradient_whose_elements_share_memory(case: Case) -> None:
    """To divide one element several times would be wrong, so that is an error, before anything is written."""
    params = parameters([700, 9], torch.float32)
    set_gradients(params, 0)
    params[1].grad = torch.ones(()).expand(9)
    optimizer = case.make(params)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)
    before = snapshot(optimizer)
    refused = pytest.raises(RuntimeError, match="more than one element of the written-to tensor")
    with backend(best_instruction_set()), refused:
        optimizer.step()
    assert_same(snapshot(optimizer), before)


@pytest.mark.parametrize("rows", [1, 2], ids=["contiguous", "strided"])
def test_a_gradient_in_memory_that_cannot_be_written(rows: int) -> None:
    """It is only read, and not written back as it was either."""

    def step() -> None:
        (param,) = parameters([700], torch.float32)
        memory = mmap.mmap(-1, 4 * 700 * rows, prot=mmap.PROT_READ)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of such memory
            param.grad = torch.frombuffer(memory, dtype=torch.float32).view(700, rows)[:, 0]
        everything()[0].make([param]).step()

    in_child(step)


@of_instruction_sets
def test_nothing_beyond_the_last_element_is_read(instruction_set: str) -> None:
    """Gradients of all small sizes that end where the next page may not even be read."""

    def steps() -> None:
        memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
        end = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + mmap.PAGESIZE
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), mmap.PAGESIZE, 0) == 0
        case = everything()[0]
        with backend(instruction_set):
            for dtype, count in itertools.product(DTYPES, range(1, 68)):
                (param,) = parameters([count], dtype)
                offset = mmap.PAGESIZE - count * dtype.itemsize
                param.grad = torch.frombuffer(memory, dtype=dtype, count=count, offset=offset)
                optimizer = case.make([param])
                optimizer.step()
                optimizer.step(zero_grad="to_zero")

    in_child(steps)
