"""Optimizers that torch lacks, against their papers' equations in plain float64, written here a second time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import helpers
import pytest
import torch
from steps import numbers_in_double
from torch import Tensor
from torch.nn import Parameter

import fusedoptim

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend")

STEPS = 12
Equations = Callable[..., Iterator[Tensor]]


def grads() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(200, generator=generator, dtype=torch.float64) for _ in range(STEPS)]


def ademamix(
    p: Tensor,
    lr: float,
    betas: Any,
    alpha: float,
    beta3_warmup: int,
    alpha_warmup: int,
    eps: float,
    weight_decay: float,
) -> Iterator[Tensor]:
    """Algorithm 1 of the paper, and the schedules of its section 3.1, by logarithms as printed there."""
    (b1, b2, b3_end), m1, m2, v = betas, 0.0, 0.0, 0.0
    for t, g in enumerate(grads(), 1):
        share = min(t / alpha_warmup, 1)
        start, end = math.log(b1 + 1e-8), math.log(b3_end + 1e-8)
        done = t / beta3_warmup
        b3 = math.exp(start * end / ((1 - done) * end + done * start)) if done < 1 else b3_end
        m1, m2, v = b1 * m1 + (1 - b1) * g, b3 * m2 + (1 - b3) * g, b2 * v + (1 - b2) * g**2
        update = (m1 / (1 - b1**t) + alpha * share * m2) / ((v / (1 - b2**t)).sqrt() + eps)
        p = p - lr * (update + weight_decay * p)
        yield p


def adan(p: Tensor, lr: float, betas: Any, eps: float, weight_decay: float, no_prox: bool) -> Iterator[Tensor]:
    """Algorithm 1 of the paper with bias corrections; its betas are 1 minus these."""
    (b1, b2, b3), m, u, n, last = betas, 0.0, 0.0, 0.0, None
    for t, g in enumerate(grads(), 1):
        d = torch.zeros_like(g) if last is None else g - last
        m, u, last = b1 * m + (1 - b1) * g, b2 * u + (1 - b2) * d, g
        n = b3 * n + (1 - b3) * (g + b2 * d) ** 2
        eta = lr / ((n / (1 - b3**t)).sqrt() + eps)
        step = eta * (m / (1 - b1**t) + b2 * u / (1 - b2**t))
        p = p * (1 - lr * weight_decay) - step if no_prox else (p - step) / (1 + lr * weight_decay)
        yield p


def adamw_schedule_free(
    y: Tensor,
    lr: float,
    betas: Any,
    eps: float,
    weight_decay: float,
    warmup_steps: int,
    r: float,
    weight_lr_power: float,
) -> Iterator[Tensor]:
    """Algorithm 1 of the paper, which keeps x itself: y = (1 - beta1) z + beta1 x."""
    (b1, b2), x, z, v, total = betas, y, y, 0.0, 0.0
    for t, g in enumerate(grads(), 1):
        rate = lr * min(t / warmup_steps, 1)
        v = b2 * v + (1 - b2) * g**2
        z = z - rate * (g / ((v / (1 - b2**t)).sqrt() + eps) + weight_decay * y)
        weight = t**r * rate**weight_lr_power
        total += weight
        x = x + weight / total * (z - x)
        y = (1 - b1) * z + b1 * x
        yield y


def sgd_schedule_free(
    y: Tensor, lr: float, momentum: float, weight_decay: float, warmup_steps: int, r: float, weight_lr_power: float
) -> Iterator[Tensor]:
    """Equations 2 to 4 of the paper."""
    x, z, total = y, y, 0.0
    for t, g in enumerate(grads(), 1):
        rate = lr * min(t / warmup_steps, 1)
        z = z - rate * (g + weight_decay * y)
        weight = t**r * rate**weight_lr_power
        total += weight
        x = x + weight / total * (z - x)
        y = (1 - momentum) * z + momentum * x
        yield y


_SCHEDULE = {"warmup_steps": 4, "r": 0.6, "weight_lr_power": 1.4}
EQUATIONS: dict[str, tuple[type, Equations, dict[str, Any]]] = {
    "AdEMAMix": (
        fusedoptim.AdEMAMix, ademamix,
        {"lr": 0.02, "betas": (0.8, 0.9, 0.97), "alpha": 3.0, "beta3_warmup": 9, "alpha_warmup": 5, "eps": 1e-3,
         "weight_decay": 0.2},
    ),
    "Adan": (
        fusedoptim.Adan, adan,
        {"lr": 0.02, "betas": (0.9, 0.8, 0.7), "eps": 1e-3, "weight_decay": 0.2, "no_prox": False},
    ),
    "Adan no_prox": (
        fusedoptim.Adan, adan,
        {"lr": 0.02, "betas": (0.9, 0.8, 0.7), "eps": 1e-3, "weight_decay": 0.2, "no_prox": True},
    ),
    "AdamWScheduleFree": (
        fusedoptim.AdamWScheduleFree, adamw_schedule_free,
        {"lr": 0.02, "betas": (0.9, 0.8), "eps": 1e-3, "weight_decay": 0.2, **_SCHEDULE},
    ),
    "SGDScheduleFree": (
        fusedoptim.SGDScheduleFree, sgd_schedule_free,
        {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.2, **_SCHEDULE},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EQUATIONS)
def test_steps_follow_the_papers_equations(name: str) -> None:
    cls, equations, options = EQUATIONS[name]
    start = torch.linspace(-2, 2, 200, dtype=torch.float64)
    param = Parameter(start.clone())
    with numbers_in_double():
        optimizer: Any = cls([param], **options)
        if hasattr(optimizer, "train"):
            optimizer.train()
        for grad, expected in zip(grads(), equations(start, **options), strict=True):
            param.grad = grad
            optimizer.step()
            torch.testing.assert_close(param.detach(), expected, rtol=1e-11, atol=1e-13)


def test_adan_clips_as_its_authors_code_asks() -> None:
    """By the third-last argument, of which 0 is none."""
    start = torch.linspace(-2, 2, 50)
    params = [Parameter(start.clone()) for _ in range(3)]
    makes = [
        fusedoptim.Adan([params[0]], 0.1, (0.9, 0.8, 0.7), 1e-8, 0.0, 0.5),
        fusedoptim.Adan([params[1]], 0.1, (0.9, 0.8, 0.7)),
        fusedoptim.Adan([params[2]], 0.1, (0.9, 0.8, 0.7), max_grad_norm=0.0),
    ]
    assert [group.get("max_grad_norm") for make in makes for group in make.param_groups] == [0.5, None, None]
    for seed in range(3):
        for param, optimizer in zip(params, makes, strict=True):
            param.grad = torch.randn(50, generator=torch.Generator().manual_seed(seed))
            optimizer.step()
    assert makes[0].grad_norm is not None
    assert not torch.equal(params[0], params[1])
    assert torch.equal(params[1], params[2])
