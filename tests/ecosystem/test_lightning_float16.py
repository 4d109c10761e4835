"""Lightning under float16 with a GradScaler: who unscales, and where clipping is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lit import Classifier, fit, without_flag
from training import ADAMW, Make, Pair, assert_equal_bits, assert_learns, copies, of_pairs

import fusedoptim


def in_float16(make: Make, **options: Any) -> Classifier:
    """The Trainer itself turns 16-mixed on a CPU into bf16-mixed. The scale grows until steps overflow."""
    factor, interval, epochs = 64.0, 2, 4
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=1024.0, growth_factor=factor, backoff_factor=1 / factor, growth_interval=interval
    )
    module = fit(make, epochs=epochs, plugins=[MixedPrecision("16-mixed", "cpu", scaler)], **options)
    assert scaler.get_scale() < 1024.0 * factor ** (len(module.losses) // interval), "steps were skipped"
    assert_learns(module.losses)
    return module


@of_pairs
@pytest.mark.parametrize("clip", [None, 0.3])
def test_float16_with_a_scaler(pair: Pair, clip: float | None) -> None:
    """Lightning unscales the gradients, and clips them where it shall."""
    ours = in_float16(pair.ours, gradient_clip_val=clip)
    theirs = in_float16(without_flag(pair.theirs), gradient_clip_val=clip)
    assert ours.losses == theirs.losses
    assert_equal_bits(copies(ours), copies(theirs))


@of_pairs
def test_float16_with_fused_leaves_unscaling_to_the_step(pair: Pair) -> None:
    fused, plain = in_float16(lambda params: pair.ours(params, fused=True)), in_float16(pair.ours)
    assert fused.losses == plain.losses
    assert_equal_bits(copies(fused), copies(plain))


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("module", [fusedoptim, torch.optim])
def test_fused_with_clipping_is_refused(module: Any, precision: Any, steps_of_kernels: list[int]) -> None:
    """By Lightning under mixed precision, for torch's optimizer as for ours; under bf16-mixed without need."""
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit(
            lambda params: module.AdamW(params, fused=True),
            gradient_clip_val=0.3,
            plugins=[MixedPrecision(precision, "cpu")],
        )
    assert not steps_of_kernels
    steps_of_kernels.append(0)


def test_trainer_turns_16_mixed_on_a_cpu_into_bf16_mixed() -> None:
    assert fit(ADAMW.ours, precision="16-mixed").losses == fit(ADAMW.ours, precision="bf16-mixed").losses
