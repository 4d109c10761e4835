"""Models whose training comes out the same, to the last bit, however many processes share it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

import fusedoptim

OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD": ("SGD", {"lr": 0.1}),
    "momentum": ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "Adam": ("Adam", {"lr": 0.01, "weight_decay": 0.02, "amsgrad": True}),
    "AdamW": ("AdamW", {"lr": 0.03, "maximize": True}),
}
PER_RANK = 4  # samples


class Exact(nn.Module):
    """Layers side by side, so that gradients depend on the data alone.

    With data of small integers and a world of 2^n processes they are numbers of few bits: sums over samples and over
    processes are exact in any order, even in bfloat16, and a mean is a division by a power of two. The rows (7, 3, 1)
    leave shards of unequal size, and empty ones.
    """

    def __init__(self, unused: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, rows) for rows in (7, 3, 1))
        self.skip = nn.Parameter(torch.ones(6))
        self.unused = nn.Linear(2, 2) if unused else None
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))

    def forward(self, x: Tensor) -> Tensor:
        total = sum(((i + 1) * layer(x)).sum() for i, layer in enumerate(self.layers))
        return (total + (self.skip * x.sum()).sum()) / len(x)


def data(step: int, samples: int) -> Tensor:
    """Small integers."""
    return torch.randint(-3, 4, (samples, 5), generator=torch.Generator().manual_seed(step)).float()


def share(step: int, rank: int, world: int) -> Tensor:
    """What one process gets of the data of a step."""
    return data(step, PER_RANK * world)[rank * PER_RANK : (rank + 1) * PER_RANK]


def make(kind: str, params: Iterable[Any], module: Any = fusedoptim, **options: Any) -> Any:
    name, kwargs = OPTIMIZERS[kind]
    return getattr(module, name)(params, **{**kwargs, **options})


def alone(kind: str, world: int, steps: Iterable[int], **options: Any) -> tuple[Exact, Any]:
    """The training in a single process, on everything that ``world`` processes see."""
    model = Exact()
    optimizer = make(kind, model.parameters(), **options)
    for step in steps:
        optimizer.zero_grad()
        model(data(step, PER_RANK * world)).backward()
        optimizer.step()
    return model, optimizer


def whole(x: Tensor) -> Tensor:
    """All of a DTensor; a collective."""
    return (x.full_tensor() if hasattr(x, "full_tensor") else x).detach()


def assert_same_bits(model: nn.Module, wanted: nn.Module, optimizer: Any = None, other: Any = None) -> None:
    """Equal parameters and, where optimizers are given, equal state."""
    pairs = zip(model.named_parameters(), wanted.parameters(), strict=True)
    for (name, p), q in pairs:
        _same(whole(p), q.detach(), name)
        if optimizer is None:
            continue
        mine, theirs = optimizer.state[p], other.state[q]
        assert set(mine) == set(theirs), name
        for key in mine:
            _same(whole(mine[key]), theirs[key], f"{key} of {name}")


def _same(x: Tensor, y: Tensor, what: str) -> None:
    assert x.dtype == y.dtype, what
    assert x.shape == y.shape, what
    assert x.contiguous().view(-1).tolist() == y.contiguous().view(-1).tolist(), what
