"""Parameters, gradients and states of every storage, and optimizers of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from steps import numbers
from torch import Tensor
from torch.nn import Parameter

import fusedoptim

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
RULES: dict[str, dict[str, Any]] = {
    "AdamW": {"lr": 1e-2, "weight_decay": 0.1},
    "Adam": {"lr": 1e-2, "amsgrad": True},
    "SGD": {"lr": 0.1, "momentum": 0.9},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16 state": {"state_dtype": BF16},
    "fp16 state": {"state_dtype": F16},
    "8bit": {"state_dtype": "8bit"},
    "one state in 8 bits": {"state_dtype": {"exp_avg": "8bit", "exp_avg_sq": BF16, "momentum_buffer": "8bit"}},
    "master": {"master_weights": True},
    "remainder": {"master_weights": "remainder"},
    "kahan": {"kahan_sum": True},
    "stochastic": {"stochastic_rounding": True, "seed": 2**40 + 7},
    "stochastic, averages": {"stochastic_rounding": True, "ema_decay": 0.9},
    "master, 8bit, averages": {"master_weights": True, "state_dtype": "8bit", "ema_decay": 0.4},
}
SHAPES = [(70, 100), (5000,), (3,), (2, 30, 80)]


@dataclass
class Storage:
    """A rule, the dtypes of parameters and gradients, and settings."""

    rule: str
    param: torch.dtype
    grad: torch.dtype
    settings: dict[str, Any] = field(default_factory=dict)

    def make(self, params: Iterable[Any], **options: Any) -> Any:
        settings = dict(self.settings)
        if isinstance(settings.get("state_dtype"), dict):
            known = ("momentum_buffer",) if self.rule == "SGD" else ("exp_avg", "exp_avg_sq")
            settings["state_dtype"] = {name: x for name, x in settings["state_dtype"].items() if name in known}
        return getattr(fusedoptim, self.rule)(params, **{**RULES.get(self.rule, {}), **settings, **options})

    def params(self, shapes: Sequence[Sequence[int]] = SHAPES, seed: int = 7) -> list[Parameter]:
        made = [Parameter(numbers(shape, F32, seed + i).to(self.param)) for i, shape in enumerate(shapes)]
        for param in made:
            if self.grad is not self.param:
                param.grad_dtype = self.grad
        return made

    def set_grads(self, params: Iterable[Any], seed: int) -> None:
        for i, param in enumerate(params):
            param.grad = numbers(param.shape, F32, seed * 1000 + i).to(self.grad)


def _all() -> Iterable[Any]:
    """Every three of rule, dtype of parameters, dtype of gradients and settings, in a third of all fours."""
    dtypes = (F32, BF16, F16)
    for (i, rule), (j, param), (k, name) in itertools.product(*map(enumerate, (RULES, dtypes, SETTINGS))):
        grad = dtypes[(i + j + k) % 3]
        if name == "remainder" and param is F16:  # which there is not
            param = BF16
        yield pytest.param(
            Storage(rule, param, grad, SETTINGS[name]), id=f"{rule}-{str(param)[6:]}-{str(grad)[6:]}-{name}"
        )


of_storages = pytest.mark.parametrize("storage", list(_all()))
of_settings = pytest.mark.parametrize(
    "storage", [pytest.param(Storage("AdamW", BF16, BF16, x), id=name) for name, x in SETTINGS.items()]
)


def state_of(optimizer: Any) -> list[dict[str, Tensor]]:
    """Copies of all parameters and their states."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return [
        {"param": p.detach().clone(), **{name: x.clone() for name, x in optimizer.state[p].items()}} for p in params
    ]


def assert_same(ours: Sequence[dict[str, Tensor]], theirs: Sequence[dict[str, Tensor]]) -> None:
    """Compare all bits, but those of NaN."""
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert one.keys() == other.keys()
        for name, x in one.items():
            y = other[name]
            assert (x.dtype, x.shape) == (y.dtype, y.shape), f"{name} of parameter {index}"
            assert torch.equal(x.nan_to_num(), y.nan_to_num()), f"{name} of parameter {index}"
            if x.is_floating_point():
                assert torch.equal(x.isnan(), y.isnan()), f"{name} of parameter {index}"
                assert torch.equal(x.signbit() & ~x.isnan(), y.signbit() & ~y.isnan()), f"{name} of parameter {index}"
