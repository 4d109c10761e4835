"""Clipping of this package under trainers: in place of theirs, called by their hook, or set in the constructor."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from lit import Classifier, fit
from test_accelerate import train
from test_transformers import with_instance
from training import ADAMW, assert_equal_bits, assert_learns, copies

import fusedoptim
from fusedoptim.clipping import step_clips
from fusedoptim.clipping.norm import GradNorm

LIMIT = 0.1
clipping = functools.partial(ADAMW.ours, max_grad_norm=LIMIT)


@pytest.fixture
def norms(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The norms that this package has measured, by themselves or within a step."""
    found: list[float] = []
    measure, note_measured = GradNorm.measure, step_clips.note_measured

    def measuring(self: GradNorm, *args: Any) -> None:
        measure(self, *args)
        found.append(self.norm)

    def noting(optimizer: Any, is_skipped: bool, norm: float, *args: Any) -> bool:
        found.append(norm)
        return note_measured(optimizer, is_skipped, norm, *args)

    monkeypatch.setattr(GradNorm, "measure", measuring)
    monkeypatch.setattr(step_clips, "note_measured", noting)
    return found


def test_transformers(tmp_path: Path, norms: list[float]) -> None:
    with fusedoptim.replace_clip_grad_norm():
        replaced = with_instance(ADAMW.ours, tmp_path, max_grad_norm=LIMIT)
    logged = [entry["grad_norm"] for entry in replaced.state.log_history if "grad_norm" in entry]
    assert logged == pytest.approx(norms, rel=1e-7)
    assert min(logged) > LIMIT
    set_up = with_instance(clipping, tmp_path, max_grad_norm=0.0)
    assert_equal_bits(copies(replaced.model), copies(set_up.model))
    plain = with_instance(ADAMW.ours, tmp_path, max_grad_norm=LIMIT)
    theirs = [entry["grad_norm"] for entry in plain.state.log_history if "grad_norm" in entry]
    assert logged == pytest.approx(theirs, rel=1e-3)  # each step begins with the rounding of those before


class ClippingByTheOptimizer(Classifier):
    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        optimizer.clip_grad_norm_(gradient_clip_val)


def test_lightning(norms: list[float]) -> None:
    hooked = fit(ADAMW.ours, ClippingByTheOptimizer, gradient_clip_val=LIMIT)
    assert len(norms) == 16
    assert min(norms) > LIMIT
    set_up = fit(clipping)
    assert norms[16:] == norms[:16]
    assert hooked.losses == set_up.losses
    assert_equal_bits(copies(hooked), copies(set_up))
    assert_learns(hooked.losses)


def test_accelerate(norms: list[float]) -> None:
    with fusedoptim.replace_clip_grad_norm():
        losses, params = train(ADAMW.ours, max_norm=LIMIT)
    assert len(norms) == 32
    wanted, wanted_params = train(clipping)
    assert norms[32:] == norms[:32]
    assert losses == wanted
    assert_equal_bits(params, wanted_params)
