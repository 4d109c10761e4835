"""Tensors that lie in memory in any way: equal to the reference on contiguous copies, and no neighbour is touched.

In all tests here the kernels must take every parameter.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import (
    CHUNK,
    EXPANDED_LAYOUTS,
    LAYOUTS,
    PER_THREAD,
    Case,
    Layout,
    Placed,
    Snapshot,
    assert_same,
    assert_same_steps,
    backend,
    best_instruction_set,
    bits_equal,
    everything,
    fail_on,
    numbers,
    of_cases,
    of_dtypes,
    of_instruction_sets,
    once_on_reference,
    one_per_class,
    parameters,
    set_gradients,
    snapshot,
    threads,
)
from torch import Tensor
from torch.nn import Parameter

from fusedoptim.step import FusedStep

pytestmark = pytest.mark.usefixtures("one_thread", "kernels_only")

SHAPE = (3, 6, 5, 7)  # two blocks of 256 elements and a part of a third
LARGE_SHAPE = (2, 30, 17, 19)  # a chunk and a part of a second
GRAD_LAYOUTS = {**LAYOUTS, **EXPANDED_LAYOUTS}


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return numbers(torch.Size(shape).numel(), dtype, seed).view(shape)


# ---- every layout with every other ----------------------------------------------------------------------------------


class Laid:
    """One parameter after the other in given layouts of the parameter, its gradient and its state."""

    def __init__(self, case: Case, dtype: torch.dtype, layouts: list[tuple[Layout, Layout, Layout]], contiguous: bool):
        self.layouts, self.contiguous, self.placed = layouts, contiguous, []
        self.params = [Parameter(self._place(values(SHAPE, dtype, i), p)) for i, (p, _, _) in enumerate(layouts)]
        self.optimizer = case.make(self.params)

    def _place(self, x: Tensor, layout: Layout) -> Tensor:
        placed = Placed(x, layout)  # the one place where an expanded layout makes many elements one
        self.placed.append(placed)
        return placed.view.clone(memory_format=torch.contiguous_format) if self.contiguous else placed.view

    def set_gradients(self, seed: int) -> None:
        for i, (p, (_, layout, _)) in enumerate(zip(self.params, self.layouts, strict=True)):
            p.grad = self._place(values(SHAPE, p.dtype, 1000 * seed + i), layout)

    def lay_state(self) -> None:
        """Move the state into its layouts."""
        for p, (_, _, layout) in zip(self.params, self.layouts, strict=True):
            state = self.optimizer.state[p]
            state.update({name: self._place(x, layout) for name, x in state.items() if x.dim() > 0})

    def guard_differences(self) -> list[str]:
        found = ((each, each.guard_difference()) for each in self.placed)
        return [f"around {each.view.stride()}: {line}" for each, line in found if line is not None]


def rotated(layouts: dict[str, Layout], by: int) -> list[Layout]:
    """The layouts in another order, so that state is laid out otherwise than parameter and gradient."""
    everyone = list(layouts.values())
    return [everyone[(i + by) % len(everyone)] for i in range(len(everyone))]


@once_on_reference
def steps_in_layouts(
    name: str, case: Case, dtype: torch.dtype, param_layout: str, zero_grad: str | None
) -> list[Snapshot]:
    """Three steps for a parameter in one layout with a gradient in each; on the reference all are contiguous."""
    states = itertools.cycle(rotated(LAYOUTS, by=list(LAYOUTS).index(param_layout) + 3))
    grads = LAYOUTS if zero_grad == "to_zero" else GRAD_LAYOUTS  # no zeros are written where all elements are one
    layouts = [(LAYOUTS[param_layout], grad, next(states)) for grad in grads.values()]
    laid = Laid(case, dtype, layouts, contiguous=name == "reference")
    result = []
    with backend(name):
        for step in range(3):
            laid.set_gradients(step)
            laid.optimizer.step(zero_grad=zero_grad)
            result.append(snapshot(laid.optimizer))
            if step == 0:
                laid.lay_state()
    if name != "reference":
        fail_on(laid.guard_differences())
    return result


@of_instruction_sets
@pytest.mark.parametrize("param_layout", LAYOUTS)
@pytest.mark.parametrize("zero_grad", [None, "to_zero"])
@of_cases(one_per_class())
@of_dtypes
def test_every_layout(
    case: Case, dtype: torch.dtype, zero_grad: str | None, param_layout: str, instruction_set: str
) -> None:
    """A parameter in each layout with a gradient in each and, from the second step on, state in yet others."""
    expected = steps_in_layouts("reference", case, dtype, "contiguous", zero_grad)
    assert_same_steps(steps_in_layouts(instruction_set, case, dtype, param_layout, zero_grad), expected)


def large_steps(name: str, case: Case, dtype: torch.dtype, layouts: tuple[Layout, Layout]) -> list[Snapshot]:
    param = Parameter(Placed(values(LARGE_SHAPE, dtype, 1), layouts[0]).view)
    optimizer, result = case.make([param]), []
    with backend(name):
        for step in range(2):
            grad = Placed(values(LARGE_SHAPE, dtype, 10 + step), layouts[1])
            param.grad = grad.view
            optimizer.step(zero_grad="to_zero")
            result.append(snapshot(optimizer))
            fail_on([line for line in [grad.guard_difference()] if line is not None])
    return result


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "names",
    [
        ("contiguous", "channels last"),
        ("transposed", "contiguous"),
        ("every third, transposed, one element in", "permuted"),
        ("padded rows", "every second element"),
    ],
    ids=" and ".join,
)
@of_cases(everything())
def test_layouts_over_several_chunks(case: Case, names: tuple[str, str], count: int) -> None:
    """A tensor in an awkward layout is cut into chunks too, which threads share."""
    plain = LAYOUTS["contiguous"]
    with threads(count):
        actual = large_steps(best_instruction_set(), case, torch.float32, (LAYOUTS[names[0]], LAYOUTS[names[1]]))
    assert_same_steps(actual, large_steps("reference", case, torch.float32, (plain, plain)))


# ---- as users come to have them -------------------------------------------------------------------------------------

USERS: dict[str, Callable[[torch.dtype], tuple[Tensor, Tensor]]] = {}  # each makes a parameter and a gradient


def user(function: Callable[[torch.dtype], tuple[Tensor, Tensor]]) -> Callable[[torch.dtype], tuple[Tensor, Tensor]]:
    USERS[function.__name__] = function
    return function


@user
def channels_last_module(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (4, 3, 5, 5)
    return tuple(values(shape, dtype, i).to(memory_format=torch.channels_last) for i in (1, 2))  # type: ignore[return-value]


@user
def channels_last_gradient(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (4, 3, 5, 5)
    return values(shape, dtype, 1), values(shape, dtype, 2).to(memory_format=torch.channels_last)


@user
def one_channel(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Sizes of 1, whose strides mean nothing."""
    shape = (4, 1, 5, 1)
    return values(shape, dtype, 1).to(memory_format=torch.channels_last), values(shape, dtype, 2)


@user
def strange_strides_of_size_one(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return values((6,), dtype, 1).as_strided((1, 6, 1), (0, 1, 77)), values((1, 6, 1), dtype, 2)


@user
def transposed_parameter(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return values((9, 20), dtype, 1).t(), values((20, 9), dtype, 2)


@user
def transposed_gradient(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return values((9, 20), dtype, 1), values((20, 9), dtype, 2).t()


@user
def transposed_both(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return values((9, 20), dtype, 1).t(), values((9, 20), dtype, 2).t()


@user
def one_column(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return values((50, 2), dtype, 1)[..., 0], values((50,), dtype, 2)


@user
def both_one_column(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return values((50, 2), dtype, 1)[..., 0], values((50, 2), dtype, 2)[..., 1]


@user
def narrowed(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return values((10, 12), dtype, 1).narrow(1, 3, 5), values((14, 5), dtype, 2).narrow(0, 2, 10)


@user
def every_other_row(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return values((20, 6), dtype, 1)[1::2], values((30, 6), dtype, 2)[::3]


@user
def diagonal(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return values((33, 33), dtype, 1).diagonal(), values((33,), dtype, 2)


@user
def five_dimensions(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (2, 3, 4, 5, 6)
    return values(shape, dtype, 1).permute(4, 1, 3, 0, 2), values(shape, dtype, 2).permute(4, 1, 3, 0, 2).contiguous()


@user
def gradient_of_a_sum(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    leaf = values((7, 9), dtype, 1).requires_grad_()
    (grad,) = torch.autograd.grad(leaf.sum(), leaf)
    assert grad.stride() == (0, 0)
    return leaf.detach(), grad


@user
def gradient_expanded(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return values((700,), dtype, 1), torch.ones((), dtype=dtype).expand(700)


@user
def gradient_of_a_mean_over_rows(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return values((30, 40), dtype, 1), values((1, 40), dtype, 2).expand(30, 40)


@user
def gradient_with_overlapping_windows(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return values((10, 8), dtype, 1), values((17,), dtype, 2).unfold(0, 8, 1)


@user
def no_dimension(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return values((), dtype, 1), values((), dtype, 2)


@user
def one_element_of_many(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return values((5, 5), dtype, 1)[2, 3], values((9,), dtype, 2)[4]


@user
def one_element_expanded(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return values((1, 1), dtype, 1), values((), dtype, 2).expand(1, 1)


@user
def empty(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return values((0,), dtype, 1), values((0,), dtype, 2)


@user
def empty_in_one_dimension(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return values((4, 0, 3), dtype, 1), values((3, 0, 4), dtype, 2).permute(2, 1, 0)


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


@of_instruction_sets
@pytest.mark.parametrize("who", USERS)
@of_cases(one_per_class())
@of_dtypes
def test_as_users_lay_them(case: Case, dtype: torch.dtype, who: str, instruction_set: str) -> None:
    expected = steps_as_users_lay("reference", case, dtype, who)
    assert_same_steps(steps_as_users_lay(instruction_set, case, dtype, who), expected)


@of_instruction_sets
@pytest.mark.parametrize("who", USERS)
@pytest.mark.parametrize("how", ["to_zero", "to_none"])
@of_dtypes
def test_zeroing_as_users_lay_them(dtype: torch.dtype, who: str, how: str, instruction_set: str) -> None:
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
    with backend(instruction_set):
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


@of_instruction_sets
@of_cases(one_per_class())
def test_scaled_gradient_whose_elements_share_memory(case: Case, instruction_set: str) -> None:
    """To divide one element several times would be wrong, so that is an error, before anything is written."""
    params = parameters([700, 9], torch.float32)
    set_gradients(params, 0)
    params[1].grad = torch.ones(()).expand(9)
    optimizer = case.make(params)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)
    before = snapshot(optimizer)
    with backend(instruction_set), pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        optimizer.step()
    assert_same(snapshot(optimizer), before)


@pytest.mark.parametrize("place", range(4))
@of_cases(one_per_class())
@of_dtypes
def test_an_empty_tensor_at_each_place(case: Case, dtype: torch.dtype, place: int) -> None:
    """The parameters around it are updated, in one chunk or several."""
    for size in (9, CHUNK + 1):
        sizes = [size] * 4
        sizes[place] = 0
        results = []
        for name in (best_instruction_set(), "reference"):
            params = parameters(sizes, dtype)
            optimizer = case.make(params)
            with backend(name):
                set_gradients(params, 0)
                optimizer.step(zero_grad="to_zero")
            results.append(snapshot(optimizer))
        assert_same(*results)


# ---- memory shared between parameters -------------------------------------------------------------------------------

SHARED: dict[str, Callable[[torch.dtype, int], list[tuple[Tensor, Tensor]]]] = {}  # parameters and gradients


def shared(function: Callable[..., Any]) -> Callable[..., Any]:
    SHARED[function.__name__] = function
    return function


@shared
def two_parameters_in_one_place(dtype: torch.dtype, n: int) -> list[tuple[Tensor, Tensor]]:
    x = values((n,), dtype, 1)
    return [(x, values((n,), dtype, 2)), (x, values((n,), dtype, 3))]


@shared
def parameters_that_overlap(dtype: torch.dtype, n: int) -> list[tuple[Tensor, Tensor]]:
    x, shift = values((n + n // 3,), dtype, 1), n // 3
    return [(x[:n], values((n,), dtype, 2)), (x[shift:], values((n,), dtype, 3)), (x[7:8], values((1,), dtype, 4))]


@shared
def a_parameter_and_its_transpose(dtype: torch.dtype, n: int) -> list[tuple[Tensor, Tensor]]:
    x = values((4, n // 4), dtype, 1)
    return [(x, values((4, n // 4), dtype, 2)), (x.t(), values((n // 4, 4), dtype, 3))]


@shared
def interleaved_columns(dtype: torch.dtype, n: int) -> list[tuple[Tensor, Tensor]]:
    x, g = values((n, 2), dtype, 1), values((n, 2), dtype, 2)
    return [(x[:, 0], g[:, 0]), (x[:, 1], g[:, 1])]


@shared
def one_gradient_for_two(dtype: torch.dtype, n: int) -> list[tuple[Tensor, Tensor]]:
    g = values((n,), dtype, 3)
    return [(values((n,), dtype, 1), g), (values((n,), dtype, 2), g)]


@shared
def gradients_that_overlap(dtype: torch.dtype, n: int) -> list[tuple[Tensor, Tensor]]:
    g = values((n + 5,), dtype, 3)
    return [(values((n,), dtype, 1), g[5:]), (values((n,), dtype, 2), g[:n])]


@shared
def a_parameter_as_gradient_of_a_later_one(dtype: torch.dtype, n: int) -> list[tuple[Tensor, Tensor]]:
    x = values((n,), dtype, 1)
    return [(x, values((n,), dtype, 2)), (values((n,), dtype, 3), x)]


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
@of_cases(one_per_class())
@of_dtypes
def test_memory_shared_between_parameters(
    case: Case, dtype: torch.dtype, share_state: bool, zero_grad: str | None, how: str
) -> None:
    """One after the other, as torch's for-loop does; zeros come last."""
    arguments = (dtype, how, 100, share_state, zero_grad)
    with backend(best_instruction_set()):
        actual = shared_steps(case.make, *arguments)
    with backend("reference"):
        assert_same_steps(actual, shared_steps(case.make, *arguments))
    if dtype == torch.float64:
        for mine, torchs in zip(actual[-1], shared_steps(case.make_exact, *arguments)[-1], strict=True):
            for name, x in mine.items():
                torch.testing.assert_close(x, torchs[name], rtol=1e-9, atol=1e-12, check_dtype=False)


@pytest.mark.parametrize("how", SHARED)
@pytest.mark.parametrize("zero_grad", [None, "to_zero"])
@of_cases(one_per_class())
def test_large_memory_shared_between_parameters(case: Case, zero_grad: str | None, how: str) -> None:
    """Threads do not get into each other's way."""
    arguments = (torch.float32, how, 2 * PER_THREAD, False, zero_grad)
    with threads(3), backend(best_instruction_set()):
        actual = shared_steps(case.make, *arguments)
    with backend("reference"):
        assert_same_steps(actual, shared_steps(case.make, *arguments))
