"""Against torch itself: the same bits where torch rounds as the rule says, and the same numbers everywhere.

On one instruction set: test_bits.py holds all of them to the same bits.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from cases import CASES, CHUNK, SMALL_SIZES, Case, best_instruction_set, of_cases, of_dtypes, one_per_class
from steps import (
    Snapshot,
    assert_follows,
    assert_same,
    backend,
    numbers,
    numbers_in_double,
    one_step,
    parameters,
    set_gradients,
    snapshot,
    tensors,
    units,
)
from torch import Tensor
from torch.nn import Parameter

import fusedoptim

pytestmark = [
    pytest.mark.usefixtures("one_thread", "kernels_only"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning"),
]

_CAPABILITY = torch.backends.cpu.get_cpu_capability()
needs_torch_with_fma = pytest.mark.skipif(
    not _CAPABILITY.startswith("AVX"), reason=f"torch's own kernels for {_CAPABILITY} do without fma"
)
# Torch's fused kernels treat what is left over of a multiple of 64 with other roundings; its for-loop does not.
SIZES = {"fused": (64, 128, 64 * 37, 0, CHUNK, CHUNK + 64), "for-loop": (*SMALL_SIZES, 999, CHUNK + 1)}


# ---- bits -----------------------------------------------------------------------------------------------------------


def make_twin(case: Case, params: list[Parameter], **overrides: Any) -> Any:
    return case.make_torch(params, **({"fused": True} if case.twin == "fused" else {}), **overrides)


HAVE_TWINS = [case for case in CASES if case.twin is not None]


@functools.lru_cache(maxsize=2)
def steps_of_twin(case: Case, dtype: torch.dtype, count: int) -> list[Snapshot]:
    """The steps of the implementation of torch that should return the same bits."""
    params = parameters(SIZES[case.twin], dtype)
    optimizer, result = make_twin(case, params), []
    for step in range(count):
        set_gradients(params, step)
        optimizer.step()
        result.append(snapshot(optimizer))
    return result


@needs_torch_with_fma
@of_cases(HAVE_TWINS)
@of_dtypes
def test_bits_of_torch(case: Case, dtype: torch.dtype) -> None:
    """Twenty steps in float32, three in the others; torch's for-loop rounds low precision after each operation."""
    if case.twin == "for-loop" and dtype in (torch.bfloat16, torch.float16):
        pytest.skip("torch rounds every intermediate result to the dtype of the parameter")
    if case.cls is fusedoptim.Adagrad and dtype in (torch.bfloat16, torch.float16):
        pytest.skip("torch rounds the learning rate of its fused Adagrad to the dtype of the parameter")
    expected = steps_of_twin(case, dtype, 20 if dtype == torch.float32 else 3)
    assert_follows(case.make(parameters(SIZES[case.twin], dtype)), best_instruction_set(), expected)


@needs_torch_with_fma
@of_cases([case for case in CASES if case.twin == "fused"])
@pytest.mark.parametrize("scale", [65536.0, 3.7])
def test_bits_of_torch_with_grad_scale(case: Case, scale: float) -> None:
    """Torch's fused kernels, too, divide the gradients and leave them divided."""
    results = []
    for make in (case.make, functools.partial(case.make_torch, fused=True)):
        params = parameters([64, 640], torch.float32)
        optimizer = make(params)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale), torch.tensor(0.0)
        with backend(best_instruction_set()):
            for step in range(3):
                set_gradients(params, step)
                optimizer.step()
        results.append(snapshot(optimizer))
    assert_same(*results)


@needs_torch_with_fma
@of_cases([case for case in one_per_class() if case.twin is not None])
def test_learning_rate_schedule(case: Case) -> None:
    """A learning rate that changes from step to step, as a number and as a Tensor."""
    # torch's Adamax and ASGD go on in float32 with a Tensor.
    in_float32 = case.cls in (fusedoptim.Adamax, fusedoptim.ASGD)
    for lr in (0.1,) if in_float32 else (0.1, torch.tensor(0.1)):
        results = []
        for make in (case.make, functools.partial(make_twin, case)):
            params = parameters([64, 640], torch.float32)
            optimizer = make(params, lr=lr.clone() if isinstance(lr, Tensor) else lr)
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
            with backend(best_instruction_set()):
                for step in range(8):
                    set_gradients(params, step)
                    optimizer.step()
                    scheduler.step()
            results.append(snapshot(optimizer))
        assert_same(*results)


# ---- numbers --------------------------------------------------------------------------------------------------------


def step_by_step(case: Case, dtype: torch.dtype, size: int, count: int) -> list[dict[str, Tensor]]:
    """The tensors before each of some steps of ours, gradient included."""
    param = Parameter(numbers(size, dtype, 1))
    optimizer, result = case.make([param]), []
    for step in range(count):
        param.grad = numbers(size, dtype, 100 + step)
        result += snapshot(optimizer)
        optimizer.step()
    return result


@of_cases()
@of_dtypes
def test_close_to_float64(case: Case, dtype: torch.dtype) -> None:
    """Each of some steps ends where torch's for-loop in float64 takes the same tensors.

    Allowed are the half unit of the last rounding to the dtype, and 256 units of the arithmetic type for what went
    before: few roundings, but where the gradient cancels against weight decay or exp_avg, they count for more. The
    latter are units of the larger of the numbers before and after. A number that the dtype cannot hold must be
    infinite, and NaN where torch has NaN.
    """
    with backend(best_instruction_set()), numbers_in_double(case):
        # In float64, state of the first step would begin with a number that is not rounded.
        befores = step_by_step(case, dtype, 1031, 5)[1 if case.rule.initial else 0 :]
        results = [one_step(case.make, before, dtype) for before in befores]
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    for before, result in zip(befores, results, strict=True):
        with numbers_in_double(case):
            exact = one_step(case.make_exact, before, torch.float64)
        assert result.keys() == exact.keys()
        for name, x in result.items():
            y = exact[name]
            magnitudes = (y, before.get(name, torch.zeros_like(y)))
            allowed = 256 * units(arithmetic, *magnitudes)
            if dtype != arithmetic:
                allowed += units(dtype, y) / 2
            representable = y.to(dtype).isfinite()
            error = (x.double() - y).abs()
            assert (error <= allowed)[representable].all(), (name, float((error / allowed)[representable].max()))
            torch.testing.assert_close(x[~representable], y.to(dtype)[~representable], equal_nan=True)


@of_cases()
def test_whole_run_close_to_torch(case: Case) -> None:
    """A hundred steps of a small regression end where torch's for-loop ends, in float64."""

    def train(make: Any) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes = [(5, 7), (7,), (7, 3), (3,)]
        params = [Parameter(torch.randn(s, generator=generator, dtype=torch.float64) / 3) for s in shapes]
        x = torch.randn(64, 5, generator=generator, dtype=torch.float64)
        y = torch.sin(x[:, :3])
        optimizer = make(params)
        for _ in range(100):
            w1, b1, w2, b2 = params
            loss = ((torch.tanh(x @ w1 + b1) @ w2 + b2 - y) ** 2).mean()
            optimizer.zero_grad()
            (-loss if case.kwargs.get("maximize") else loss).backward()
            optimizer.step()
        return [*params, *(x for entry in tensors(optimizer) for x in entry.values())]

    with numbers_in_double(case):
        both = train(case.make), train(case.make_exact)
    for mine, wanted in zip(*both, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-6, atol=1e-9)
