"""Kernels, reference and torch do the same for torch's inputs, whatever becomes of the gradients between steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import best_instruction_set, of_dtypes
from helpers import params_of, randn, set_grads
from steps import Snapshot, assert_same_steps, backend, snapshot
from torch.nn import Parameter
from torch_inputs import Input, assert_params_close, of_inputs

# As torch's small model has them, and empty ones at the first, a middle and the last place.
SHAPES: list[tuple[int, ...]] = [(0,), (3, 2), (3,), (2, 0), (1, 3), (1,), (), (3, 0)]
LATE, FROZEN = 4, {1, 2}


def make_params(dtype: torch.dtype) -> list[Parameter]:
    return [Parameter(randn(shape, i, dtype)) for i, shape in enumerate(SHAPES)]


def take_steps(*optimizers: Any) -> Iterator[int]:
    """Seven steps: no gradient in the third, some frozen in the fourth and fifth, one whose first is in the fifth."""
    for step in range(7):
        for optimizer in optimizers:
            set_grads(optimizer, step)
            for i, p in enumerate(params_of(optimizer)):
                if step == 2 or (step < 4 and i == LATE) or (step in (3, 4) and i in FROZEN):
                    p.grad = None
            optimizer.step()
        yield step


@of_inputs("native")
@of_dtypes
def test_native_matches_reference(each: Input, dtype: torch.dtype) -> None:
    """To the bit; torch's ``test_foreach_matches_forloop`` for the two implementations that are ours."""
    results: list[list[Snapshot]] = []
    for name, fused in (("reference", None), (best_instruction_set(), None), (best_instruction_set(), True)):
        optimizer = each.ours(make_params(dtype), fused=fused)
        with backend(name):
            results.append([snapshot(optimizer) for _ in take_steps(optimizer)])
    assert_same_steps(results[1], results[0])
    assert_same_steps(results[2], results[0])
    assert len(results[0]) == 7


@of_inputs("native-fused")
@of_dtypes
def test_fused_matches_forloop(each: Input, dtype: torch.dtype) -> None:
    """Each step from torch's numbers before it, so that differences are of one step.

    In 16 bits torch's for-loop rounds each of at most eight intermediate results to half a unit in the last place of
    numbers of at most 4; that is what the tolerance allows. bits/test_accuracy.py says which of the two is nearer.
    """
    eps = torch.finfo(dtype).eps
    tolerance = {"rtol": 2 * eps, "atol": 8 * 0.5 * 4 * eps} if dtype.itemsize == 2 else {}
    options = each.options(dtype)
    ours = each.ours(make_params(dtype), **options)
    theirs = each.torchs(make_params(dtype), dtype)
    for step in take_steps(theirs, ours):
        assert_params_close(ours, theirs, **tolerance)
        if ours.state.get(params_of(ours)[1]):
            assert bool(ours.state.get(params_of(ours)[LATE])) == (step >= 4)
        with torch.no_grad():
            for p, q in zip(params_of(ours), params_of(theirs), strict=True):
                p.copy_(q)
                for key, value in (ours.state.get(p) or {}).items():
                    if value is not None:
                        value.copy_(theirs.state[q][key])


@of_inputs()
def test_mixed_device_dtype(each: Input) -> None:
    """All dtypes in one optimizer, with parameters of integers, which have no gradient: as each dtype alone."""
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16]

    def step(chosen: list[torch.dtype]) -> Any:
        params = [Parameter(randn((2, 3), dtypes.index(dtype), dtype)) for dtype in chosen]
        integers = torch.arange(6).reshape(2, 3)
        optimizer = each.ours([*params, integers], **({"eps": 0.1} if "Adam" in each.name else {}))
        for seed in range(3):
            for p in params:
                p.grad = randn(p.shape, 10 * seed + dtypes.index(p.dtype), p.dtype)
            optimizer.step()
        assert torch.equal(integers, torch.arange(6).reshape(2, 3))
        return snapshot(optimizer)[:-1]

    alone = [entry for dtype in dtypes for entry in step([dtype])]
    assert_same_steps([step(dtypes)], [alone])
    assert all(not entry["param"].equal(randn((2, 3), i, entry["param"].dtype)) for i, entry in enumerate(alone))


@of_inputs("native", "reference-fused", "foreach", only=lambda each: "Adam" in each.name)
@pytest.mark.parametrize("default", [torch.float64, torch.float16], ids=["float64", "float16"])
def test_set_default_dtype_works(each: Input, default: torch.dtype) -> None:
    """The step counts are float32, or float64 where that is the default and ``fused`` is not said, as torch's are."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        optimizers = each.ours(make_params(torch.float64)), each.torchs(make_params(torch.float64))
        for seed in range(2):
            for optimizer in optimizers:
                set_grads(optimizer, seed)
                optimizer.step()
    finally:
        torch.set_default_dtype(before)
    ours, theirs = optimizers
    wanted = torch.float64 if default == torch.float64 and not each.path.flags.get("fused") else torch.float32
    assert {state["step"].dtype for state in ours.state.values()} == {wanted}
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        torch.testing.assert_close(p, q)


@of_inputs("native", "native-fused")
def test_peak_memory(each: Input) -> None:
    """Torch's ``foreach`` allocates at least one copy of all gradients; the kernels allocate no tensor."""
    params = [Parameter(randn((16, 8), i)) for i in range(10)]
    optimizer = each.ours(params)
    for zero_grad in (None, "to_zero", "to_none"):
        set_grads(optimizer, 1)
        optimizer.step()
        set_grads(optimizer, 2)
        with torch.profiler.profile(profile_memory=True) as profile:
            optimizer.step(zero_grad=zero_grad)
        assert max((event.cpu_memory_usage for event in profile.key_averages()), default=0) <= 0


@of_inputs("native-fused", "reference-fused")
def test_fused_error_on_params_on_meta(each: Input) -> None:
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Sigmoid(), torch.nn.Linear(3, 1))
    optimizer = each.ours(model.parameters())
    for p in model.parameters():
        p.grad = torch.rand_like(p)
    with pytest.raises(RuntimeError, match="`fused=True` requires all the params to be floating point Tensors"):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    optimizer.param_groups[0]["params"] = list(model.to_empty(device="cpu").parameters())  # which are new ones
    for p in model.parameters():
        torch.nn.init.ones_(p)
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all((p != 1).all() for p in model.parameters())


@of_inputs("native", "native-fused", "reference", "reference-fused")
@pytest.mark.parametrize(("grad_scale", "found_inf"), [(None, 1.0), (8.0, 2.0)])
def test_fused_does_not_step_if_foundinf(each: Input, grad_scale: float | None, found_inf: float) -> None:
    """Not in the first step either, after which the next one is still the first, to the bit."""
    params, untouched = ([Parameter(torch.ones(3)) for _ in range(5)] for _ in range(2))
    optimizer, other = each.ours(params), each.ours(untouched)
    for p in params:
        p.grad = torch.full_like(p, torch.inf)
    optimizer.grad_scale = None if grad_scale is None else torch.tensor([grad_scale])
    optimizer.found_inf = torch.tensor(found_inf)
    optimizer.step()
    assert all(p.eq(1).all() for p in params)
    assert not any(optimizer.state.values())

    for p, q in zip(params, untouched, strict=True):
        q.grad = randn((3,), 1)
        p.grad = q.grad * (grad_scale or 1)  # a power of two: exact
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    other.step()
    assert_same_steps([snapshot(optimizer)], [snapshot(other)])
    assert not untouched[0].eq(1).all()
