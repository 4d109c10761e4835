"""Accelerate wraps our optimizers as it wraps torch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader
from training import ADAMW, Make, Pair, assert_equal_bits, assert_learns, cnn, copies, digits, of_pairs

import fusedoptim

Result = tuple[list[float], list[torch.Tensor]]


def train(
    make: Make,
    *,
    epochs: int = 4,
    max_norm: float | None = None,
    save: Path | None = None,
    load: Path | None = None,
    **options: Any,
) -> Result:
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, **options)
    plain = cnn()
    optimizer = make(plain.parameters())
    schedule = CosineAnnealingLR(optimizer, T_max=40)
    model, wrapped, loader, schedule = accelerator.prepare(
        plain, optimizer, DataLoader(digits(), batch_size=16), schedule
    )
    assert isinstance(wrapped, AcceleratedOptimizer)
    assert wrapped.optimizer is optimizer
    if load is not None:
        accelerator.load_state(str(load))
    losses = []
    for _ in range(epochs):
        for images, target in loader:
            with accelerator.accumulate(model):
                loss = F.cross_entropy(model(images), target)
                accelerator.backward(loss)
                if accelerator.sync_gradients and max_norm is not None:
                    accelerator.clip_grad_norm_(model.parameters(), max_norm)
                wrapped.step()
                schedule.step()
                wrapped.zero_grad()
            losses.append(loss.item())
    if save is not None:
        accelerator.save_state(str(save))
    return losses, copies(plain)


@of_pairs
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mixed_precision": "bf16"},
        {"max_norm": 0.3},
        {"gradient_accumulation_steps": 3},
        {"mixed_precision": "bf16", "max_norm": 0.3, "gradient_accumulation_steps": 2},
    ],
    ids=lambda options: ",".join(f"{key}={value}" for key, value in options.items()) or "default",
)
def test_training_is_that_of_torch(pair: Pair, options: dict[str, Any], steps_of_kernels: list[int]) -> None:
    losses, params = train(pair.ours, **options)
    wanted, wanted_params = train(pair.theirs, **options)
    assert losses == wanted
    assert_equal_bits(params, wanted_params)
    assert_learns(losses)
    assert len(steps_of_kernels) == 4 * -(-8 // options.get("gradient_accumulation_steps", 1))


@of_pairs
@pytest.mark.parametrize("start", ["ours", "theirs"])
def test_resumed_run_equals_the_uninterrupted_one(pair: Pair, start: str, tmp_path: Path) -> None:
    """Also where torch's optimizer was saved."""
    whole = train(pair.ours)
    train(getattr(pair, start), epochs=2, save=tmp_path)
    losses, params = train(pair.ours, epochs=2, load=tmp_path)
    assert losses == whole[0][16:]
    assert_equal_bits(params, whole[1])


def test_fused_and_clipping() -> None:
    fused = train(lambda params: ADAMW.ours(params, fused=True), max_norm=0.3, mixed_precision="bf16")
    plain = train(ADAMW.ours, max_norm=0.3, mixed_precision="bf16")
    assert fused[0] == plain[0]
    assert_equal_bits(fused[1], plain[1])


def in_float16(make: Make) -> tuple[list[float], int]:
    """Accelerate makes no scaler on a CPU: its wrapper is given one, whose scale grows until steps overflow."""
    Accelerator(cpu=True)
    model = cnn()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_factor=64.0, backoff_factor=1 / 64)
    scaler.set_growth_interval(2)
    wrapped = AcceleratedOptimizer(make(model.parameters()), scaler=scaler)
    noticed, losses = 0, []
    for images, target in [*DataLoader(digits(), batch_size=16)] * 4:
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(model(images), target)
        wrapped.zero_grad()
        scaler.scale(loss).backward()
        wrapped.step()
        noticed += wrapped.step_was_skipped
        losses.append(loss.item())
    assert_learns(losses)
    return losses, noticed


@of_pairs
def test_float16_with_a_scaler(pair: Pair) -> None:
    """With ``fused=True``, torch's too, the step is called also when it shall be skipped: Accelerate cannot notice."""
    losses, noticed = in_float16(pair.ours)
    assert noticed > 0
    for module in (fusedoptim, torch.optim):
        options = {**pair.options, "fused": True}
        fused_losses, fused_noticed = in_float16(lambda p, m=module, o=options: getattr(m, pair.name)(p, **o))
        assert fused_noticed == 0
        if module is fusedoptim:
            assert fused_losses == losses


def test_zeroing_stays_a_call_of_its_own(steps_of_kernels: list[int]) -> None:
    """The wrapper's ``step`` takes a closure alone; the optimizer inside takes ``zero_grad``."""
    model = cnn()
    wrapped = Accelerator(cpu=True).prepare_optimizer(ADAMW.ours(model.parameters()))
    model(digits(4)[:4][0]).sum().backward()
    with pytest.raises(TypeError, match="zero_grad"):
        wrapped.step(zero_grad="to_none")
    wrapped.optimizer.step(zero_grad="to_none")
    assert all(p.grad is None for p in model.parameters())
