"""Optimizers with named parameters, whose numbers and gradients go by their names."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from helpers import randn
from torch.nn import Parameter

import fusedoptim

Group = tuple[Sequence[str], dict[str, Any]]
SHAPES = {"body": (4, 33), "bias": (7,), "head": (5, 2), "norm": (7,), "scale": ()}
ALL = tuple(SHAPES)
KINDS = {"SGD": {"momentum": 0.9}, "Adam": {"amsgrad": True}, "AdamW": {}}


def make(*groups: Group, name: str = "Adam", module: Any = fusedoptim, steps: int = 0, **options: Any) -> Any:
    """An optimizer whose parameters have equal numbers and gradients wherever their names stand."""
    listed = [
        {"params": [(n, Parameter(randn(SHAPES[n], ALL.index(n)))) for n in names], **own} for names, own in groups
    ]
    optimizer = getattr(module, name)(listed, **{"lr": 0.1, **KINDS[name], **options})
    for seed in range(steps):
        step(optimizer, seed)
    return optimizer


def named(optimizer: Any) -> dict[str, Any]:
    return {
        n: p for group in optimizer.param_groups for n, p in zip(group["param_names"], group["params"], strict=True)
    }


def step(optimizer: Any, seed: int) -> None:
    for n, p in named(optimizer).items():
        p.grad = randn(p.shape, 1000 * seed + ALL.index(n))
    optimizer.step()


def saved(optimizer: Any) -> Any:
    return copy.deepcopy(optimizer.state_dict())
