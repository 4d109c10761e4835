"""torch's own wrappers that are given the class or the optimizer: the kernels take the steps within."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from steps import assert_same, snapshot
from torch import nn

import fusedoptim

pytestmark = [
    pytest.mark.usefixtures("kernels_only"),
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo"),
]
OPTIONS: dict[str, Any] = {"lr": 0.05, "momentum": 0.9}


@pytest.fixture(scope="module")
def _one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def _train(model: nn.Module, step: Any, count: int = 3) -> None:
    for i in range(count):
        model.zero_grad()
        model(torch.full((4, 3), float(i + 1))).square().mean().backward()
        step()


def _alone(count: int = 3) -> fusedoptim.SGD:
    model = _model()
    optimizer = fusedoptim.SGD(model.parameters(), **OPTIONS)
    _train(model, optimizer.step, count)
    model.zero_grad()
    return optimizer


def test_named_optimizer() -> None:
    """With state by name, which goes into another one."""
    from torch.distributed.optim import _NamedOptimizer

    model, other = _model(), _model()
    optimizer, copy = (_NamedOptimizer(m.named_parameters(), fusedoptim.SGD, **OPTIONS) for m in (model, other))
    _train(model, optimizer.step, 2)
    assert set(optimizer.state_dict()["state"]) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    _train(other, copy.step, 1)  # it loads into state that is there
    other.load_state_dict(model.state_dict())
    copy.load_state_dict(optimizer.state_dict())
    for m, o in ((model, optimizer), (other, copy)):
        _train(m, o.step, 1)
        m.zero_grad()
    assert_same(snapshot(copy._optimizer), snapshot(optimizer._optimizer))


@pytest.mark.usefixtures("_one_process")
def test_post_local_sgd() -> None:
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
    from torch.distributed.optim import PostLocalSGDOptimizer

    model = _model()
    inner = fusedoptim.SGD(model.parameters(), **OPTIONS)
    _train(model, PostLocalSGDOptimizer(inner, PeriodicModelAverager(period=2, warmup_steps=1)).step)
    model.zero_grad()
    assert_same(snapshot(inner), snapshot(_alone()))
