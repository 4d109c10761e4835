"""What torch's tests leave out, with torch's inputs: every size around the vectors and chunks, and every layout."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from cases import BLOCK_SIZES, CHUNK_SIZES, PER_THREAD, of_dtypes, of_instruction_sets
from helpers import params_of, randn
from placed import LAYOUTS, Layout, Placed
from steps import backend, difference, fail_on, once_on_reference
from torch import Tensor
from torch.nn import Parameter
from torch_inputs import Input, assert_params_close, of_inputs

VECTOR_BYTES = 64  # of the widest instruction set


def up_to_four_vectors(dtype: torch.dtype) -> list[int]:
    return list(range(1, 4 * VECTOR_BYTES // dtype.itemsize + 4))


def steps_in_pieces(optimizer: Any, sizes: list[int], count: int) -> list[dict[str, Tensor]]:
    """Take steps; after each everything that the parameters, which lie behind one another, hold."""
    result = []
    for step in range(count):
        grads = randn((sum(sizes),), 10 + step, params_of(optimizer)[0].dtype).split(sizes)
        for p, grad in zip(params_of(optimizer), grads, strict=True):
            p.grad = grad.clone()
        optimizer.step()
        entries = [{"param": p.detach(), **(optimizer.state.get(p) or {})} for p in params_of(optimizer)]
        keys = [key for key, x in entries[0].items() if x is not None and x.dim() > 0]
        result.append({key: torch.cat([entry[key] for entry in entries]) for key in keys})
    return result


def pieces(sizes: list[int], dtype: torch.dtype) -> list[Parameter]:
    return [Parameter(x.clone()) for x in randn((sum(sizes),), 1, dtype).split(sizes)]


def compare(actual: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> None:
    for mine, wanted in zip(actual, expected, strict=True):
        assert mine.keys() == wanted.keys()
        fail_on([f"{key}: {line}" for key in mine if (line := difference(mine[key], wanted[key])) is not None])


@once_on_reference
def steps_of_whole(name: str, each: Input, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """All sizes as one parameter: the place of an element in its tensor changes nothing (bits/test_reference.py)."""
    sizes = up_to_four_vectors(dtype) if name != "reference" else [sum(up_to_four_vectors(dtype))]
    with backend(name):
        return steps_in_pieces(each.ours(pieces(sizes, dtype)), sizes, 2)


@of_instruction_sets
@of_inputs("native")
@of_dtypes
def test_every_size_up_to_four_vectors(each: Input, dtype: torch.dtype, instruction_set: str) -> None:
    compare(steps_of_whole(instruction_set, each, dtype), steps_of_whole("reference", each, dtype))


SIZES = [*up_to_four_vectors(torch.float32), *BLOCK_SIZES, *CHUNK_SIZES, 2 * PER_THREAD + 1]


@of_inputs("native-fused")
def test_every_size_equals_torch(each: Input) -> None:
    """SGD its for-loop, Adam its fused kernel on a multiple of 64 elements, for one thread and for several."""
    whole = sum(SIZES) + -sum(SIZES) % 64
    sizes = [*SIZES, whole - sum(SIZES)]
    options: dict[str, Any] = {} if each.name == "SGD" else {"fused": True}
    if "betas" in each.options():  # torch computes with Tensors in float32, ours with the numbers in them
        options["betas"] = tuple(map(float, each.options()["betas"]))
    expected = steps_in_pieces(each.torchs(pieces([whole], torch.float32), **options), [whole], 3)
    for count in (1, 3):
        torch.set_num_threads(count)
        compare(steps_in_pieces(each.ours(pieces(sizes, torch.float32)), sizes, 3), expected)


PLACES = list(LAYOUTS.values())


def lay(values: Tensor, layout: Layout, placed: list[Placed]) -> Tensor:
    placed.append(Placed(values, layout))
    return placed[-1].view


@of_inputs("native-fused", "reference")
def test_layouts(each: Input) -> None:
    """Dense and other layouts, misaligned by an element and mixed between parameter and gradient, as torch's for-loop.

    Each input meets them in other pairs. Nothing around the elements changes. test_layouts.py has every pair, and
    bits.
    """
    placed: list[Placed] = []
    shape = (2, 3, 4, 5)
    ours = each.ours([Parameter(lay(randn(shape, i), layout, placed)) for i, layout in enumerate(PLACES)])
    theirs = each.torchs([Parameter(randn(shape, i)) for i in range(len(PLACES))])
    for step in range(2):
        for i, (p, q) in enumerate(zip(params_of(ours), params_of(theirs), strict=True)):
            q.grad = randn(shape, 100 * step + i)
            p.grad = lay(q.grad, PLACES[(i + each.index) % len(PLACES)], placed)
        ours.step()
        theirs.step()
        assert_params_close(ours, theirs, **{"rtol": 0, "atol": 0} if each.name == "SGD" else {})
    fail_on([line for each_place in placed if (line := each_place.guard_difference()) is not None])


FAR = 2**31 + 1  # elements of 2 bytes: neither they nor their bytes can be counted in 32 bits


@of_inputs("native-fused", "reference-fused", only=lambda each: each.index == 4)
def test_elements_far_apart(each: Input) -> None:
    """Two elements of one tensor, 4 GiB of untouched memory between them."""
    far, near = torch.empty(FAR + 1, dtype=torch.bfloat16)[::FAR], torch.empty(2, dtype=torch.bfloat16)
    results = []
    for place in (far, near):
        with torch.no_grad():
            p = Parameter(place.copy_(torch.tensor([1.0, 2.0])))
        p.grad = torch.tensor([0.5, -0.25]).bfloat16()
        optimizer = each.ours([p], lr=0.5)
        for _ in range(2):
            optimizer.step()
        results.append(p.detach().clone())
    assert results[0].tolist() == results[1].tolist()
    assert (results[0] != torch.tensor([1.0, 2.0])).all()


@pytest.mark.skipif(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 60 << 30, reason="needs 64 GiB, minutes")
@of_inputs("native-fused", only=lambda each: each.name == "SGD" and each.index == 0)
def test_fused_large_tensor(each: Input) -> None:
    """More than 2**31 elements in one stretch of memory; parameters and gradients that move, which torch's do not."""
    count, places = FAR + 6, torch.tensor([0, 1, FAR - 2, FAR - 1, FAR, FAR + 5])
    p = Parameter(torch.zeros(count, dtype=torch.bfloat16))
    p.grad = torch.zeros(count, dtype=torch.bfloat16)
    with torch.no_grad():
        p[places], p.grad[places] = 1, 1
    each.ours([p], lr=0.5).step(zero_grad="to_zero")
    assert p.grad.count_nonzero() == 0
    assert p[places].eq(0.5).all()
    assert p.count_nonzero() == len(places)
