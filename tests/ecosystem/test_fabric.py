"""Lightning's Fabric drives our optimizers as it drives torch's."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.plugins import MixedPrecision
from lit import loader
from torch.nn import functional as F
from training import ADAMW, Make, Pair, assert_equal_bits, assert_learns, cnn, copies, of_pairs


def with_fabric(make: Make, tmp_path: Path, epochs: int = 4, resume: bool = False, **options: Any) -> Any:
    fabric = L.Fabric(accelerator="cpu", devices=1, **options)
    model = cnn()
    optimizer = make(model.parameters())
    model, optimizer = fabric.setup(model, optimizer)
    loading = fabric.setup_dataloaders(loader())
    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "epoch": 0}
    if resume:
        fabric.load(tmp_path / "state.ckpt", state)
    losses = []
    while state["epoch"] < epochs:
        for images, target in loading:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), target)
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizer, max_norm=0.5)
            optimizer.step()
            losses.append(loss.item())
        state["epoch"] += 1
    fabric.save(tmp_path / "state.ckpt", state)
    return losses, copies(model)


@of_pairs
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fabric(pair: Pair, precision: str, tmp_path: Path) -> None:
    losses, params = with_fabric(pair.ours, tmp_path, precision=precision)
    wanted, wanted_params = with_fabric(pair.theirs, tmp_path, precision=precision)
    assert losses == wanted
    assert_equal_bits(params, wanted_params)
    assert_learns(losses)


@of_pairs
def test_fabric_resumes(pair: Pair, tmp_path: Path) -> None:
    whole = with_fabric(pair.ours, tmp_path)
    with_fabric(pair.ours, tmp_path, epochs=2)
    losses, params = with_fabric(pair.ours, tmp_path, resume=True)
    assert losses == whole[0][16:]
    assert_equal_bits(params, whole[1])


@pytest.mark.parametrize("fused", [None, True])
def test_fabric_refuses_fused_with_clipping(fused: bool | None, tmp_path: Path, steps_of_kernels: list[int]) -> None:
    """Only where there is a scaler; without ``fused=True`` it clips."""
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    with pytest.raises(NotImplementedError, match="clipping is not implemented") if fused else nullcontext():
        losses, _ = with_fabric(lambda params: ADAMW.ours(params, fused=fused), tmp_path, plugins=[plugin])
        assert_learns(losses)
    steps_of_kernels.append(0)
