"""GradScaler: skipped steps leave everything alone, taken steps leave the gradients unscaled."""

from __future__ import annotations

from typing import Any

import helpers
import pytest
import torch
from helpers import Twins, assert_optimizers_match, everything_of, make_params, of_settings, params_of, randn

import fusedoptim

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend")


def train(optimizer: Any, seeds: list[float | None]) -> Any:
    """One step for each seed, with an overflow where it is None."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    scales = []
    for seed in seeds:
        optimizer.zero_grad()
        loss = sum(
            (p * (torch.inf if seed is None else randn(p.shape, int(seed) + i))).sum()
            for i, p in enumerate(params_of(optimizer))
        )
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


@of_settings
@pytest.mark.parametrize("fused", [None, True])
def test_training_with_overflows_as_torch_without_fusing(
    name: str, options: dict[str, Any], fused: bool | None
) -> None:
    twins = Twins(name, {**options, "fused": fused})
    seeds = [None, 1, 2, None, None, 3, 4, 5]
    assert train(twins.ours, seeds) == train(twins.theirs, seeds)
    assert_optimizers_match(*twins)
    for p, q in zip(params_of(twins.ours), params_of(twins.theirs), strict=True):
        assert torch.equal(p.grad, q.grad), "unscaled and written back"


@pytest.mark.parametrize("fused", [None, True])
def test_overflow_on_the_first_step_creates_no_momentum(fused: bool | None) -> None:
    optimizer = fusedoptim.SGD(make_params(), lr=0.1, momentum=0.9, fused=fused)
    train(optimizer, [None])
    assert not any(optimizer.state.values())


@of_settings
@pytest.mark.parametrize("found", [1.0, 2.0, torch.inf, torch.nan])
@pytest.mark.parametrize("scale", [None, 4.0])
def test_any_found_inf_skips_all(name: str, options: dict[str, Any], found: float, scale: float | None) -> None:
    optimizer = getattr(fusedoptim, name)(make_params(), fused=True, **options)
    for seed in (1, 2):
        for p in params_of(optimizer):
            p.grad = randn(p.shape, seed)
        optimizer.step()
    optimizer.found_inf = torch.tensor([found])
    optimizer.grad_scale = None if scale is None else torch.tensor([scale])
    before = everything_of(optimizer)
    optimizer.step()
    assert everything_of(optimizer) == before
    optimizer.found_inf.zero_()
    optimizer.step()
    assert everything_of(optimizer) != before


def test_unscaled_by_the_user_first_and_clipped() -> None:
    twins = Twins("Adam", {"lr": 0.1, "fused": True})
    for optimizer in twins:
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        scaler.scale(sum((p * 3).sum() for p in params_of(optimizer))).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(params_of(optimizer), 0.5)
        scaler.step(optimizer)
    assert_optimizers_match(*twins)


@pytest.mark.parametrize("fused", [None, False, True])
@pytest.mark.parametrize("file_fused", [None, False, True])
def test_flag_for_grad_scaler_survives_loading_and_is_not_loaded(fused: bool | None, file_fused: bool | None) -> None:
    saved = fusedoptim.SGD(make_params(), lr=0.1, fused=file_fused)
    optimizer = fusedoptim.SGD(make_params(), lr=0.1, fused=fused)
    optimizer.load_state_dict(saved.state_dict())
    assert bool(getattr(optimizer, "_step_supports_amp_scaling", False)) is bool(fused)
    assert optimizer.param_groups[0]["fused"] is fused
    train(optimizer, [1, None, 2])
