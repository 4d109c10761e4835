"""The global norm: the same bits wherever it is measured, and no less accurate than torch's."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from helpers import need_kernels, run_python
from steps import any_bits, backend, bits_equal, numbers, special_values, threads
from torch.nn import Parameter
from ways_to_clip import with_grads

import fusedoptim
from fusedoptim import native
from fusedoptim.clipping.norm import GradNorm

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
of_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
PATHS = ["reference", *(fusedoptim.build_info()["instruction_sets_supported"] if native.available() else ())]
of_paths = pytest.mark.parametrize("where", PATHS)
# Around the widths of vectors, the 128 lanes, the 4,096 elements of a unit, and beyond what one thread takes.
SIZES = (0, 1, 3, 7, 8, 9, 17, 63, 64, 65, 127, 128, 129, 1000, 4095, 4096, 4097, 8191, 4096 * 4 + 1, 300_001)


def norm_of(params: Any, grad_scale: float | None = None) -> float:
    norm = GradNorm([params])
    norm.measure(grad_scale)
    return norm.norm


@of_dtypes
@of_paths
def test_the_order_of_addition(dtype: torch.dtype, where: str) -> None:
    """As in ``ordered_sum``, said again in plain Python."""
    for size in SIZES[:-1]:
        grad = numbers(size, dtype, size)
        squares = [float(x) ** 2 for x in grad.double()]
        sums = [_ordered(squares[i : i + 4096]) for i in range(0, size, 4096)]
        with backend(where):
            assert norm_of(with_grads([grad])) == math.sqrt(_ordered(sums)), size


def _ordered(values: list[float]) -> float:
    lanes = [0.0] * 128
    for i, value in enumerate(values):
        lanes[i % 128] += value
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [a + b for a, b in zip(lanes[:half], lanes[half:], strict=True)]
    return lanes[0]


@of_dtypes
@pytest.mark.parametrize("grad_scale", [None, 3.7, 2.0**14])
def test_bits_of_many_gradients(dtype: torch.dtype, grad_scale: float | None) -> None:
    """Sizes that are cut in pieces and bundled, in one to four threads."""
    grads = [numbers(size, dtype, i) for i, size in enumerate((*SIZES, *[5] * 300))]
    assert_same_norm(grads, grad_scale, (1, 2, 4))


def assert_same_norm(grads: list[Any], grad_scale: float | None, counts: tuple[int, ...]) -> None:
    """On every path, in so many threads."""
    with backend("reference"):
        expected = norm_of(with_grads(grads), grad_scale)
    for where, count in itertools.product(PATHS[1:], counts):
        with backend(where), threads(count):
            assert norm_of(with_grads(grads), grad_scale) == expected, (where, count)


@of_dtypes
@pytest.mark.parametrize("grad_scale", [None, 2.0**16, 2.0**-140, 2.6])
def test_bits_of_gradients_beyond_the_caches(dtype: torch.dtype, grad_scale: float | None) -> None:
    """Whole units are summed several abreast; subnormals are rounded when they are scaled."""
    grads = [numbers(4096 * units + rest, dtype, units) for units, rest in ((3, 0), (517, 11), (0, 77), (9, 128))]
    grads[1][::3] *= torch.finfo(dtype).tiny
    grads[1][1] = 0  # by the reciprocal of what has none it would be NaN
    assert_same_norm(grads, grad_scale, (1, 2))


def test_neighbours_of_other_dtypes_and_layouts_beyond_the_caches() -> None:
    units = [numbers(4096, dtype, i) for i, dtype in enumerate(DTYPES * 3)]
    grads = [*units, numbers((512, 4096), torch.float32, 1).t(), numbers(4096 * 520, torch.bfloat16, 2), *units[:5]]
    assert_same_norm(grads, None, (2,))


@of_paths
def test_layouts_of_memory(where: str) -> None:
    grad = numbers((6, 40, 7, 50), torch.float32, 1)
    expected = norm_of(with_grads([grad]))
    strided = torch.empty(12, 80, 7, 100)[::2, ::2, :, ::2].copy_(grad)
    channels_last = grad.contiguous(memory_format=torch.channels_last)
    with backend(where):
        for other in (grad.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0), channels_last, strided):
            assert torch.equal(other, grad)
            assert not other.is_contiguous()
            assert norm_of(with_grads([other])) == expected
        expanded = torch.tensor([[3.0], [4.0]]).expand(2, 10)
        assert norm_of(with_grads([expanded])) == math.sqrt(250)
        assert norm_of(with_grads([torch._neg_view(grad)])) == expected


@of_paths
def test_kinds_that_the_module_does_not_measure(where: str) -> None:
    """They have their places among the others."""
    grads = [numbers(size, torch.float32, size) for size in (5000, 31, 300, 9, 64)]
    grads[1] = torch.complex(grads[1], -grads[1]).conj()
    grads[3] = grads[3].to_sparse()
    with backend("reference"):
        expected = norm_of(with_grads(grads))
    squares = [float(abs(x) ** 2) for grad in grads for x in grad.to_dense().to(torch.complex128).flatten()]
    assert expected == pytest.approx(math.sqrt(math.fsum(squares)), rel=1e-15)
    with backend(where):
        assert norm_of(with_grads(grads)) == expected


@need_kernels
def test_without_the_fast_path() -> None:
    grads = [numbers(size, torch.float32, size) for size in (5, 5000)]
    code = """
import torch, fusedoptim
from steps import numbers
params = [torch.nn.Parameter(torch.zeros(size)) for size in (5, 5000)]
for p in params:
    p.grad = numbers(len(p), torch.float32, len(p))
optimizer = fusedoptim.SGD(params, lr=0.1)
norm = optimizer.clip_grad_norm_(1e9)
print(optimizer._next_clip.norm.norm.hex())
params[0].grad.data = torch.ones(5)
print(optimizer._next_clip.norm.is_still_theirs([params]))
"""
    tools = str(Path(helpers.__file__).parent)
    printed = run_python(f"import sys; sys.path.insert(0, {tools!r})\n{code}", FUSEDOPTIM_DIRECT="0")
    assert printed.split() == [norm_of(with_grads(grads)).hex(), "False"]


@of_dtypes
@of_paths
def test_bits_of_clipped_gradients(dtype: torch.dtype, where: str) -> None:
    """A product rounded once, to the gradient's dtype; of any numbers, in any layout."""
    grads = [
        any_bits(777, dtype, 1),
        special_values(dtype),
        numbers((40, 130), dtype, 2).t(),
        numbers(70_000, dtype, 3),
    ]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for coefficient in (0.3, 1e-3, 0.0, math.nan):
        params = with_grads([grad.clone(memory_format=torch.preserve_format) for grad in grads])
        with backend(where), threads(2):
            GradNorm([params]).scale(coefficient)
        for p, grad in zip(params, grads, strict=True):
            product = (grad.to(wide) * torch.tensor(coefficient, dtype=wide)).to(dtype)
            assert bits_equal(p.grad, product).all()
            assert p.grad._version == 1


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_no_less_accurate_than_torch(dtype: torch.dtype) -> None:
    for seed, sizes in itertools.product(range(3), [(7,), (1000, 50), (200_000, 3)]):
        params = with_grads([numbers(size, dtype, seed + size) for size in sizes])
        exact = math.sqrt(math.fsum(float(x) ** 2 for p in params for x in p.grad.double()))
        ours = float(fusedoptim.clip_grad_norm_(params, math.inf))
        theirs = float(torch.nn.utils.clip_grad_norm_(params, math.inf))
        assert abs(ours - exact) <= max(abs(theirs - exact), exact * torch.finfo(dtype).eps / 2)


@of_paths
@pytest.mark.parametrize("size", [1e25, 1e-30])
def test_squares_beyond_float32(where: str, size: float) -> None:
    params = with_grads([torch.full((100,), size)])
    assert float(torch.nn.utils.get_total_norm([p.grad for p in params])) in (math.inf, 0.0), "torch's is no norm"
    with backend(where):
        norm = fusedoptim.clip_grad_norm_(params, size)
    assert float(norm) == pytest.approx(10 * size)
    assert float(params[0].grad[0]) == pytest.approx(size / 10 if size > 1 else size)


@of_paths
def test_squares_beyond_float64(where: str) -> None:
    largest = torch.finfo(torch.float64).max
    for value, norm in ((1e200, 3e200), (largest / 4, largest * 0.75), (largest, math.inf)):
        params = with_grads([torch.full((8,), value, dtype=torch.float64), torch.full((1,), 1e30), torch.ones(1)])
        params[0].grad[::7] *= -1
        params.append(Parameter(torch.zeros(1, dtype=torch.complex128)))
        params[-1].grad = torch.full((1,), complex(0, value), dtype=torch.complex128)
        with backend(where):
            found = GradNorm([params])
            found.measure()
        assert (found.norm, found.is_finite) == (pytest.approx(norm), True)
        params[1].grad[0] = math.inf
        with backend(where):
            found = GradNorm([params])
            found.measure()
        assert (found.norm, found.is_finite) == (math.inf, False)
