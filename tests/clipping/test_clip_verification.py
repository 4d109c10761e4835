"""fusedoptim.verify on steps that clip: right where the coefficient is, and wrong where it is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import backend, make_params, params_of, set_grads  # noqa: F401

import fusedoptim
from fusedoptim.clipping.norm import GradNorm
from fusedoptim.step import FusedStep

pytestmark = pytest.mark.usefixtures("backend", "one_thread")


def clipping_optimizer(name: str) -> Any:
    """Two groups of different limits, and one without."""
    limits = zip(make_params([(40, 3), (7,), (600,)]), (0.5, 2.0, None), strict=True)
    groups = [{"params": [p], "max_grad_norm": limit} for p, limit in limits]
    return getattr(fusedoptim, name)(groups, skip_nonfinite=True, fused=True)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_nothing_is_found_where_steps_clip(name: str) -> None:
    """By the limits of groups, before it by a call, with a scale, and where the step is left out."""
    optimizer = clipping_optimizer(name)
    with fusedoptim.verify(optimizer) as found:
        for seed in range(5):
            set_grads(optimizer, seed)
            if seed in (1, 4):
                optimizer.clip_grad_norm_(0.3, norm_type=2 if seed == 1 else 1)
            optimizer.grad_scale = torch.tensor(3.7) if seed == 2 else None
            if seed == 3:
                params_of(optimizer)[2].grad[5] = torch.inf
            optimizer.step(zero_grad="to_zero" if seed == 1 else None)
    assert (found.steps, found.checked, found.differences) == (5, 15, [])
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize("way", ["limits", "call"])
def test_a_wrong_coefficient_is_found(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is measured wrong, and one that is measured right and not used."""
    measure, take = GradNorm.measure, FusedStep._take_executor

    def too_small(self: Any, grad_scale: float | None = None) -> None:
        measure(self, grad_scale)
        self.norm *= 1.0 if self.by_reference else 0.999

    def forgetful(self: Any) -> Any:
        executor = take(self)
        for half in ("fast_step", "prepare"):
            call = getattr(executor, half)
            setattr(executor, half, lambda *args, call=call: call(*args[:4], ()))
        executor.measuring_step = lambda *_: None
        return executor

    def in_halves(self: Any) -> Any:  # in one call a step measures by itself
        executor = take(self)
        executor.measuring_step = lambda *_: None
        return executor

    for wrong, of, method in ((too_small, GradNorm, "measure"), (forgetful, FusedStep, "_take_executor")):
        with monkeypatch.context() as patch:
            patch.setattr(FusedStep, "_take_executor", in_halves)
            optimizer = clipping_optimizer("SGD")
            set_grads(optimizer, 1)
            patch.setattr(of, method, wrong)
            with fusedoptim.verify(optimizer) as found:
                if way == "call":
                    optimizer.clip_grad_norm_(0.3)
                optimizer.step()
        assert {difference.tensor for difference in found.differences} == {"param"}
        assert len(found.differences) == (3 if way == "call" else 2)
