"""Clipping before the step, in the next step and by a setting: the same bits on every path, and torch's numbers."""

from __future__ import annotations

import functools
import math
from typing import Any

import helpers
import pytest
import torch
from helpers import (
    SETTINGS,
    Twins,
    assert_optimizers_match,
    assert_tensors_match,
    make_params,
    of_names,
    of_settings,
    params_of,
    randn,
    set_grads,
)
from steps import Snapshot, assert_same, assert_same_steps, snapshot
from ways_to_clip import WAYS, clip, clipped_steps, odd_params, set_odd_grads, without_grads

import fusedoptim

path = helpers.path
pytestmark = pytest.mark.usefixtures("path", "one_thread")

SHAPES: list[tuple[int, ...]] = [(4, 33), (), (5000,), (0,), (7,)]
of_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
of_ways = pytest.mark.parametrize("way", WAYS)


@functools.cache
def expected_steps(setting: int, dtype: torch.dtype) -> tuple[list[Snapshot], list[float]]:
    """Clipped before the step, by the reference."""
    name, options = SETTINGS[setting]
    with fusedoptim.set_backend("reference"):
        return clipped_steps(
            lambda: getattr(fusedoptim, name)(make_params(SHAPES, dtype), **options), "before", set_grads
        )


@pytest.mark.parametrize("setting", range(len(SETTINGS)), ids=["SGD", "momentum", "Adam", "AdamW-maximize"])
@of_dtypes
def test_three_ways_leave_the_same_bits(setting: int, dtype: torch.dtype) -> None:
    name, options = SETTINGS[setting]
    expected, norms = expected_steps(setting, dtype)
    make = functools.partial(getattr(fusedoptim, name), **options)
    for way in WAYS:
        for zero_grad in (None, "to_zero", "to_none") if way != "before" else (None,):
            found = clipped_steps(
                lambda **x: make(make_params(SHAPES, dtype), **x), way, set_grads, zero_grad=zero_grad
            )
            assert_same_steps(found[0], expected, f"{way}, {zero_grad}: ")
            assert found[1] == norms


@pytest.mark.parametrize("norm_type", [math.inf, 1.0, 3.0, 0.0])
def test_norms_of_other_orders(norm_type: float) -> None:
    shapes = [shape for shape in SHAPES if shape != (0,)]  # whose largest element torch refuses to find
    results = []
    for way in WAYS[:2]:
        optimizer = fusedoptim.AdamW(make_params(shapes))
        set_grads(optimizer, 1)
        if way == "before":
            norm = fusedoptim.clip_grad_norm_(params_of(optimizer), 1.5, norm_type)
        else:
            norm = optimizer.clip_grad_norm_(1.5, norm_type)
        optimizer.step()
        results.append([norm, *(p.detach() for p in params_of(optimizer))])
    assert all(map(torch.equal, *results))
    twin = torch.optim.AdamW(make_params(shapes), foreach=False)
    set_grads(twin, 1)
    torch.testing.assert_close(results[0][0], torch.nn.utils.clip_grad_norm_(params_of(twin), 1.5, norm_type))
    twin.step()
    assert_optimizers_match(optimizer, twin)


def exact_norm(params: Any) -> float:
    return math.sqrt(sum(float(p.grad.to_dense().abs().double().square().sum()) for p in params if p.grad is not None))


@of_ways
@of_settings
def test_parameters_of_every_kind(way: str, name: str, options: dict[str, Any]) -> None:
    """The gradients of those that torch takes belong to the same norm, and are clipped as well."""
    sparse = "nesterov" not in options and name == "SGD"
    params, theirs = odd_params(sparse), getattr(torch.optim, name)(odd_params(sparse), **options, foreach=False)
    groups = [{"params": params[::2]}, {"params": params[1::2], "foreach": None if sparse else True}]
    ours = getattr(fusedoptim, name)(groups, **options, **({"max_grad_norm": 1.0} if way == "setting" else {}))
    for seed in range(3):
        set_odd_grads(params, seed)
        set_odd_grads(params_of(theirs), seed)
        norm = exact_norm(params)
        for p in params_of(theirs):
            p.grad = None if p.grad is None else p.grad * (1.0 / (norm + 1e-6))
        theirs.step()
        clip(ours, way, 1.0)
        before = [None if p.grad is None else p.grad.to_dense().clone() for p in params]
        ours.step()
        assert way != "setting" or float(ours.grad_norm) == pytest.approx(norm, rel=1e-6)
        for p, q, grad in zip(params, params_of(theirs), before, strict=True):
            assert grad is None or torch.equal(p.grad.to_dense(), grad), "the step leaves gradients as they were"
            assert_tensors_match(p.detach(), q.detach(), False, str(tuple(p.shape)))


@of_names
@of_dtypes
def test_numbers_of_torch(name: str, dtype: torch.dtype) -> None:
    """In float16 and bfloat16 torch's norm is of that dtype, and its for-loop rounds after each operation."""
    options = {"lr": 0.1} if name == "SGD" else {"lr": 0.1, "eps": 1e-3}  # which float16 can hold
    twins = Twins(name, options, lambda: make_params(SHAPES, dtype))
    for seed in range(3):
        twins.do(lambda optimizer, seed=seed: set_grads(optimizer, seed))
        mine = twins.ours.clip_grad_norm_(2.0)
        norm = torch.nn.utils.clip_grad_norm_(params_of(twins.theirs), 2.0)
        torch.testing.assert_close(mine, norm)
        twins.do(lambda optimizer: optimizer.step())
        if dtype.itemsize > 2:
            assert_optimizers_match(*twins, exact=False)
        elif dtype == torch.bfloat16 or name == "SGD":  # in float16 torch's Adam loses small squares
            for p, q in zip(params_of(twins.ours), params_of(twins.theirs), strict=True):
                torch.testing.assert_close(p, q, rtol=0.02, atol=0.02)
        twins.sync()


def test_groups_of_different_limits_and_one_without() -> None:
    """One norm, of all that have a limit; from the second step on, all is there that the fast path needs."""
    ours, plain = (make_params([(30,), (4, 5), (6,)]) for _ in range(2))
    limits = (0.5, 2.0, None)
    groups = [{"params": [p], "max_grad_norm": limit} for p, limit in zip(ours, limits, strict=True)]
    optimizer, twin = fusedoptim.Adam(groups), fusedoptim.Adam(plain)
    for seed in range(4):
        for each in (optimizer, twin):
            set_grads(each, seed)
        if seed < 3:
            norm = fusedoptim.clip_grad_norm_(plain[:2], torch.inf)
            exact = exact_norm(plain[:2])
            for p, limit in zip(plain, limits, strict=True):
                p.grad *= 1.0 if limit is None else min(limit / (exact + 1e-6), 1.0)
        else:  # which comes before the limits, and is of all
            optimizer.clip_grad_norm_(0.1)
            norm = fusedoptim.clip_grad_norm_(plain, 0.1)
        optimizer.step()
        twin.step()
        assert torch.equal(optimizer.grad_norm, norm)
        assert_same(*map(without_grads, (snapshot(optimizer), snapshot(twin))))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_unscaled_first(name: str, dtype: torch.dtype) -> None:
    """The limit is one of quotients, and they are left in ``p.grad``."""
    ours, plain = (make_params(SHAPES, dtype) for _ in range(2))
    optimizer = getattr(fusedoptim, name)(ours, lr=0.1, fused=True, max_grad_norm=0.7, skip_nonfinite=True)
    twin = getattr(fusedoptim, name)(plain, lr=0.1)
    scale, wide = torch.tensor(3.7), torch.promote_types(dtype, torch.float32)
    for seed in range(3):
        set_grads(optimizer, seed)
        optimizer.grad_scale, optimizer.found_inf = scale, torch.tensor(float(seed == 1))
        quotients = [(p.grad.to(wide) / scale.to(wide)).to(dtype) for p in ours]
        optimizer.step()
        if seed == 1:
            continue
        for p, q, quotient in zip(ours, plain, quotients, strict=True):
            assert torch.equal(p.grad, quotient)
            q.grad = quotient
        assert torch.equal(fusedoptim.clip_grad_norm_(plain, 0.7), optimizer.grad_norm)
        twin.step()
        assert_same(*map(without_grads, (snapshot(optimizer), snapshot(twin))))
    assert optimizer.skipped_steps == 0, "found_inf is the scaler's to count"


@pytest.mark.parametrize("fused", [None, True])
@of_ways
def test_with_grad_scaler(way: str, fused: bool | None) -> None:
    ours, plain = make_params([(40,)]), make_params([(40,)])
    setting = {"max_grad_norm": 0.3} if way == "setting" else {}
    optimizer = fusedoptim.AdamW(ours, fused=fused, **setting)
    twin = torch.optim.AdamW(plain, foreach=False)
    for each in (optimizer, twin):
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        for factor in (1.0, torch.inf, 3.0):
            each.zero_grad()
            scaler.scale((params_of(each)[0] * randn((40,), 1)).sum() * factor).backward()
            if each is twin or way != "setting":
                scaler.unscale_(each)
                clip(each, "before" if each is twin else way, 0.3)
            scaler.step(each)
            scaler.update()
    assert_optimizers_match(optimizer, twin)
