"""What all trainers are given: small data and models, and optimizers of ours beside those of torch.

All parameters have sizes that are multiples of 64 and are float32. There SGD equals torch's for-loop and AdamW equals
torch's ``fused=True``, so that whole trainings end with equal bits.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import fusedoptim

Make = Callable[[Iterable[Any]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Pair:
    """An optimizer of ours, and torch's with the implementation that rounds where ours does."""

    name: str
    options: Mapping[str, Any]
    theirs_too: Mapping[str, Any]

    def ours(self, params: Iterable[Any], **more: Any) -> Any:
        return getattr(fusedoptim, self.name)(params, **self.options, **more)

    def theirs(self, params: Iterable[Any], **more: Any) -> Any:
        return getattr(torch.optim, self.name)(params, **self.options, **{**self.theirs_too, **more})


SGD = Pair("SGD", {"lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4}, {"foreach": False, "fused": False})
ADAM = Pair("Adam", {"lr": 2e-3}, {"fused": True})
ADAMW = Pair("AdamW", {"lr": 2e-3, "weight_decay": 0.05}, {"fused": True})
of_pairs = pytest.mark.parametrize("pair", [SGD, ADAMW], ids=lambda pair: pair.name)


def digits(count: int = 128) -> TensorDataset:
    """Images `(1, 8, 8)` of handwritten digits in [0, 1], and which digit each is."""
    data = load_digits()
    images = torch.tensor(data.images[:count], dtype=torch.float32).unsqueeze(1) / 16
    return TensorDataset(images, torch.tensor(data.target[:count]))


def text(length: int = 4096) -> Tensor:
    """Bytes of English and Python: the source of a module of the standard library."""
    with open(textwrap.__file__, "rb") as file:
        return torch.tensor(list(file.read(length)))


def cnn() -> nn.Sequential:
    """A classifier of digits. Of its 64 outputs ten are used."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
    )


def copies(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def assert_equal_bits(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> None:
    for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(p, q, rtol=0, atol=0, msg=lambda m, i=i: f"parameter {i}: {m}")


def assert_learns(losses: list[float], factor: float = 0.97) -> None:
    """The last quarter of the losses is below ``factor`` times the first quarter."""
    quarter = max(1, len(losses) // 4)
    first, last = sum(losses[:quarter]) / quarter, sum(losses[-quarter:]) / quarter
    assert last < factor * first, losses
