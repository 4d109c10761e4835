"""What modes and transforms of torch are tested with: an optimizer under them, beside torch's with equal flags."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from outcomes import OPTIONS
from torch.nn import Parameter

import fusedoptim

FLAGS: list[dict[str, Any]] = [{}, {"foreach": True}, {"fused": True}, {"fused": False}]
of_flags = pytest.mark.parametrize("flags", FLAGS, ids=["default", "foreach", "fused", "not_fused"])
of_steps_before = pytest.mark.parametrize("steps_before", [0, 1])
MODULES: list[Any] = [fusedoptim, torch.optim]

# What asks and changes nothing; where our implementation asks, and in which order, is its own affair.
QUESTIONS = ("__get__", "_record_function", "profiler.", "_set_grad_enabled", "is_complex", "is_floating_point")


def without_questions(names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith(QUESTIONS)]


def optimizer_of(make: Any, steps_before: int = 1) -> tuple[Any, Parameter]:
    """An optimizer of one parameter, with a gradient, after so many steps."""
    weight = Parameter(torch.linspace(1, 2, 5))
    optimizer = make([weight])
    weight.grad = torch.linspace(0.5, 1, 5)
    for _ in range(steps_before):
        optimizer.step()
    return optimizer, weight


def makers(name: str, flags: dict[str, Any]) -> list[Callable[[Any], Any]]:
    """What makes ours, and torch's with the same flags."""
    return [lambda params, m=module: getattr(m, name)(params, **OPTIONS[name], **flags) for module in MODULES]
