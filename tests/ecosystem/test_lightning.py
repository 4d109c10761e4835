"""Lightning's Trainer drives our optimizers as it drives torch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lit import Classifier, fit, without_flag
from torch import Tensor, nn
from torch.nn import functional as F
from training import ADAM, ADAMW, Make, Pair, assert_equal_bits, assert_learns, copies, of_pairs


class TwoOptimizers(Classifier):
    """Manual optimization: two optimizers take turns, and one clips."""

    def __init__(self, make: Make) -> None:
        super().__init__(make)
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        layers = list(self.model)
        return [self.make(nn.Sequential(*layers[:4]).parameters()), self.make(nn.Sequential(*layers[4:]).parameters())]

    def training_step(self, batch: Any, index: int) -> Tensor:
        first, second = self.optimizers()
        for optimizer, target in ((first, batch[1]), (second, batch[1]), (second, 9 - batch[1])):
            self.toggle_optimizer(optimizer)
            loss = F.cross_entropy(self.model(batch[0]), target)
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            optimizer.step()
            self.untoggle_optimizer(optimizer)
            self.losses.append(loss.item())
        return loss


@of_pairs
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "bf16-mixed"},
        {"gradient_clip_val": 0.3},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 3},
        {"precision": "bf16-mixed", "gradient_clip_val": 0.3, "accumulate_grad_batches": 2},
    ],
    ids=lambda options: ",".join(f"{key}={value}" for key, value in options.items()) or "default",
)
def test_training_is_that_of_torch(pair: Pair, options: dict[str, Any], steps_of_kernels: list[int]) -> None:
    ours, theirs = fit(pair.ours, **options), fit(without_flag(pair.theirs), **options)
    assert ours.losses == theirs.losses
    assert_equal_bits(copies(ours), copies(theirs))
    accumulated = options.get("accumulate_grad_batches", 1)
    assert len(steps_of_kernels) == 2 * -(-8 // accumulated)
    assert ours.losses[-1] < ours.losses[0]


@of_pairs
def test_several_optimizers_under_manual_optimization(pair: Pair) -> None:
    ours, theirs = fit(pair.ours, TwoOptimizers), fit(pair.theirs, TwoOptimizers)
    assert ours.losses == theirs.losses
    assert_equal_bits(copies(ours), copies(theirs))


@of_pairs
@pytest.mark.parametrize("start", ["ours", "theirs"])
def test_resumed_run_equals_the_uninterrupted_one(pair: Pair, start: str, tmp_path: Path) -> None:
    """Also where torch's optimizer wrote the checkpoint."""
    whole = fit(pair.ours, epochs=4)
    saving = ModelCheckpoint(dirpath=tmp_path, filename="half")
    fit(getattr(pair, start), epochs=2, callbacks=[saving])
    resumed = fit(pair.ours, epochs=4, resume=tmp_path / "half.ckpt")
    assert resumed.losses == whole.losses[16:]
    assert_equal_bits(copies(resumed), copies(whole))


def test_torch_resumes_from_our_checkpoint(tmp_path: Path) -> None:
    """Torch takes ``fused`` from the file, so it has to say there what its optimizer says."""
    fit(
        lambda params: ADAMW.ours(params, fused=True),
        epochs=2,
        callbacks=[ModelCheckpoint(dirpath=tmp_path, filename="half")],
    )
    resumed = fit(ADAMW.theirs, epochs=4, resume=tmp_path / "half.ckpt")
    assert_equal_bits(copies(resumed), copies(fit(ADAMW.theirs, epochs=4)))


class ZeroedInTheStep(TwoOptimizers):
    """LightningOptimizer hands ``zero_grad`` on to the step."""

    def training_step(self, batch: Any, index: int) -> None:
        self.manual_backward(Classifier.training_step(self, batch, index))
        for optimizer in self.optimizers():
            optimizer.step(zero_grad="to_none")
        assert all(p.grad is None for p in self.parameters())


def test_gradients_zeroed_in_the_step() -> None:
    assert_learns(fit(ADAM.ours, ZeroedInTheStep, epochs=4).losses)
