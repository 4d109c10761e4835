"""Tensors that lie in memory in any way: equal to the reference on contiguous copies, and no neighbour is touched.

In all tests here the kernels must take every parameter.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import (
    CHUNK,
    Case,
    best_instruction_set,
    everything,
    for_drivers,
    of_cases,
    of_drivers,
    one_per_class,
)
from placed import EXPANDED_LAYOUTS, LAYOUTS, Layout, Placed
from steps import (
    Snapshot,
    assert_same,
    assert_same_steps,
    backend,
    fail_on,
    numbers,
    once_on_reference,
    parameters,
    set_gradients,
    snapshot,
    threads,
)
from torch import Tensor
from torch.nn import Parameter

pytestmark = pytest.mark.usefixtures("one_thread", "kernels_only")

SHAPE = (3, 6, 5, 7)  # two blocks of 256 elements and a part of a third
LARGE_SHAPE = (2, 30, 17, 19)  # a chunk and a part of a second
GRAD_LAYOUTS = {**LAYOUTS, **EXPANDED_LAYOUTS}


class Laid:
    """One parameter after the other in given layouts of the parameter, its gradient and its state."""

    def __init__(self, case: Case, dtype: torch.dtype, layouts: list[tuple[Layout, Layout, Layout]], contiguous: bool):
        self.layouts, self.contiguous, self.placed = layouts, contiguous, []
        self.params = [Parameter(self._place(numbers(SHAPE, dtype, i), p)) for i, (p, _, _) in enumerate(layouts)]
        self.optimizer = case.make(self.params)

    def _place(self, x: Tensor, layout: Layout) -> Tensor:
        placed = Placed(x, layout)  # the one place where an expanded layout makes many elements one
        self.placed.append(placed)
        return placed.view.clone(memory_format=torch.contiguous_format) if self.contiguous else placed.view

    def set_gradients(self, seed: int) -> None:
        for i, (p, (_, layout, _)) in enumerate(zip(self.params, self.layouts, strict=True)):
            p.grad = self._place(numbers(SHAPE, p.dtype, 1000 * seed + i), layout)

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
    name: str, case: Case, dtype: torch.dtype, param_layout: str, written: str | None
) -> list[Snapshot]:
    """Three steps for a parameter in one layout with a gradient in each; on the reference all are contiguous."""
    states = itertools.cycle(rotated(LAYOUTS, by=list(LAYOUTS).index(param_layout) + 3))
    grads = LAYOUTS if written else GRAD_LAYOUTS  # nothing is written where all elements are one
    layouts = [(LAYOUTS[param_layout], grad, next(states)) for grad in grads.values()]
    laid = Laid(case, dtype, layouts, contiguous=name == "reference")
    if written == "unscaled":
        laid.optimizer.grad_scale, laid.optimizer.found_inf = torch.tensor(3.7), torch.tensor(0.0)
    result = []
    with backend(name):
        for step in range(3):
            laid.set_gradients(step)
            laid.optimizer.step(zero_grad="to_zero" if written == "zeroed" else None)
            result.append(snapshot(laid.optimizer))
            if step == 0:
                laid.lay_state()
    if name != "reference":
        fail_on(laid.guard_differences())
    return result


@pytest.mark.parametrize("param_layout", LAYOUTS)
@pytest.mark.parametrize("written", [None, "zeroed", "unscaled"])
@of_drivers(one_per_class())
def test_every_layout(case: Case, dtype: torch.dtype, written: str | None, param_layout: str) -> None:
    """A parameter in each layout with a gradient in each and, from the second step on, state in yet others.

    The gradients stay as they are, or are written to.
    """
    expected = steps_in_layouts("reference", case, dtype, "contiguous", written)
    assert_same_steps(steps_in_layouts(best_instruction_set(), case, dtype, param_layout, written), expected)


def large_steps(name: str, case: Case, dtype: torch.dtype, layouts: tuple[Layout, Layout]) -> list[Snapshot]:
    param = Parameter(Placed(numbers(LARGE_SHAPE, dtype, 1), layouts[0]).view)
    optimizer, result = case.make([param]), []
    with backend(name):
        for step in range(2):
            grad = Placed(numbers(LARGE_SHAPE, dtype, 10 + step), layouts[1])
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
@of_cases(for_drivers(everything()))
def test_layouts_over_several_chunks(case: Case, names: tuple[str, str], count: int) -> None:
    """A tensor in an awkward layout is cut into chunks too, which threads share."""
    plain = LAYOUTS["contiguous"]
    with threads(count):
        actual = large_steps(best_instruction_set(), case, torch.float32, (LAYOUTS[names[0]], LAYOUTS[names[1]]))
    assert_same_steps(actual, large_steps("reference", case, torch.float32, (plain, plain)))


@pytest.mark.parametrize("place", range(4))
@of_drivers(one_per_class())
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
