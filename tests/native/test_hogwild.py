"""Parameters in shared memory, updated by several processes at once without locks (Hogwild, Niu et al. 2011)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

import fusedoptim

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 60
LR = {"SGD": 0.02, "Adam": 0.01}


def make_model() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))


def batch(seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(seed))
    return x, x.sum(1, keepdim=True).sin()


def train(rank: int, models: dict[str, Any], shared: dict[str, Any]) -> None:
    """What each process does: optimizers of its own, parameters that belong to all."""
    torch.set_num_threads(1)
    for name, model in models.items():
        optimizer = getattr(fusedoptim, name)(model.parameters(), lr=LR[name])
        if name in shared:  # one state for all processes as well
            for p, state in zip(model.parameters(), shared[name], strict=True):
                optimizer.state[p] = state
        for step in range(STEPS):
            x, y = batch(1000 * rank + step)
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step(zero_grad="to_none")
            assert all(p.is_shared() for p in model.parameters())


def losses(models: dict[str, Any]) -> dict[str, float]:
    x, y = batch(12345)
    with torch.no_grad():
        return {name: nn.functional.mse_loss(model(x), y).item() for name, model in models.items()}


def test_two_processes_train_one_model() -> None:
    """Also with Adam's moments and step counts in shared memory: nothing crashes, and the losses fall."""
    models = {name: make_model().share_memory() for name in LR}
    shared = {
        "Adam": [
            {
                "step": torch.tensor(0.0).share_memory_(),
                "exp_avg": torch.zeros_like(p).share_memory_(),
                "exp_avg_sq": torch.zeros_like(p).share_memory_(),
            }
            for p in models["Adam"].parameters()
        ]
    }
    start = {name: [p.detach().clone() for p in model.parameters()] for name, model in models.items()}
    addresses = [p.data_ptr() for model in models.values() for p in model.parameters()]
    before = losses(models)
    mp.spawn(train, args=(models, shared), nprocs=2, join=True)
    after = losses(models)
    assert all(after[name] < 0.8 * before[name] for name in LR), (before, after)
    assert addresses == [p.data_ptr() for model in models.values() for p in model.parameters()]
    for name, model in models.items():
        for p, old in zip(model.parameters(), start[name], strict=True):
            assert p.isfinite().all()
            assert not torch.equal(p.detach(), old)
    for state in shared["Adam"]:
        # A count may be lost where two processes raise it at once, and none is invented.
        assert STEPS <= state["step"] <= 2 * STEPS


def test_shared_parameters_keep_their_memory() -> None:
    """``share_memory_`` between two steps: the next one writes to the shared memory."""
    model = make_model()
    optimizer = fusedoptim.Adam(model.parameters(), lr=0.01)
    x, y = batch(1)
    for shared in (False, True):
        if shared:
            model.share_memory()
        addresses = [p.data_ptr() for p in model.parameters()]
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        old = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
        assert addresses == [p.data_ptr() for p in model.parameters()]
        assert all(p.is_shared() == shared for p in model.parameters())
        assert not any(map(torch.equal, old, model.parameters()))
