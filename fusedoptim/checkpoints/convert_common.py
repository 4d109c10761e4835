"""What the converters of state dicts share: known keys, checks and the entries of a group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fusedoptim.checkpoints.checks import format_value
from fusedoptim.settings import DEFAULTS

Dict = dict[str, Any]

# What schedulers and torch.optim itself put into any group.
OF_ANY_GROUP = {
    "params", "param_names", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr", "lr",
    "weight_decay", "maximize", "foreach", "capturable", "differentiable", "fused", *DEFAULTS,
}  # fmt: skip
TORCH_ADAM = OF_ANY_GROUP | {"betas", "eps", "amsgrad", "decoupled_weight_decay"}
TORCH_SGD = OF_ANY_GROUP | {"momentum", "dampening", "nesterov"}
MOMENTS = {"exp_avg", "exp_avg_sq"}
IMPLEMENTATION: Dict = {"maximize": False, "foreach": None, "differentiable": False, "fused": None}
MATHEMATICS = "whose mathematics the rules here do not have"


def adam_group(group: Dict, betas: tuple[Any, ...], drop: set[str], where: str) -> Dict:
    """A group of torch's Adam without ``amsgrad``, made from another library's; its entries ``drop`` do not go over."""
    lr = group["lr"]
    if isinstance(lr, Tensor):  # as apex keeps it with capturable=True
        require(lr.numel() == 1, f"{where}['lr'] must be one number, got {format_value(lr)}")
        lr = float(lr)
    kept = {key: value for key, value in group.items() if key not in drop}
    return {**kept, "lr": lr, "betas": betas, "amsgrad": False, "capturable": False, **IMPLEMENTATION}


def entries(group: Dict, state: Dict) -> list[tuple[Any, Dict]]:
    """The entries of a group's parameters, as new dicts."""
    found = [(index, state[index]) for index in group["params"] if state.get(index)]
    for index, entry in found:
        require(isinstance(entry, Mapping), f"state[{index!r}] must be a dict, got {format_value(entry)}")
    return [(index, dict(entry)) for index, entry in found]


def count(step: Any, where: str) -> Tensor:
    """The count of steps as torch keeps it."""
    try:
        number = float(step)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    require(0 <= number < math.inf, f"{where} must be a count of steps, got {format_value(step)}")
    return torch.tensor(number, dtype=torch.float32)


def check_keys(found: Dict, known: set[str], keep: frozenset[str], where: str) -> None:
    """Raise if there are keys that are neither known nor to be kept."""
    unknown = [key for key in found if key not in known and key not in keep]
    hint = "; name entries of your own in keep=" if where.startswith("param_groups") else ""
    require(not unknown, f"{where} has keys that are not understood: {unknown}{hint}")


def require(condition: Any, problem: str) -> None:
    """Raise unless the condition holds."""
    if not condition:
        raise ValueError(f"cannot convert the state dict: {problem}")
