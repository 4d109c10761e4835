"""A module for Lightning, and a Trainer that fits it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from training import Make, cnn, digits


class Classifier(L.LightningModule):
    """A classifier of digits under automatic optimization, with a schedule for each batch."""

    def __init__(self, make: Make) -> None:
        super().__init__()
        self.model, self.make = cnn(), make
        self.losses: list[float] = []

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = self.make(self.parameters())
        lr = optimizer.defaults["lr"]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=64, cycle_momentum=False)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def loader() -> DataLoader[Any]:
    return DataLoader(digits(), batch_size=16)


def fit(
    make: Make,
    kind: type[Classifier] = Classifier,
    *,
    epochs: int = 2,
    resume: Path | None = None,
    callbacks: list[Any] | None = None,
    **options: Any,
) -> Classifier:
    module = kind(make)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=bool(callbacks),
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, loader(), ckpt_path=resume)
    return module


def without_flag(make: Make) -> Make:
    """With the flag, which torch's ``fused=True`` sets, Lightning refuses to clip under mixed precision."""

    def made(params: Any) -> Any:
        optimizer: Any = make(params)
        optimizer._step_supports_amp_scaling = False
        return optimizer

    return made
