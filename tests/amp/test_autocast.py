"""Training under autocast: float32 parameters, bfloat16 products; ours beside torch's."""

from __future__ import annotations

import helpers
import pytest
import torch
from helpers import of_names, randn
from torch import Tensor, nn

import fusedoptim

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend", "one_thread")


class Net(nn.Module):
    """A small classifier with a normalization, which autocast keeps in float32."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(12, 24), nn.LayerNorm(24), nn.GELU(), nn.Linear(24, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@of_names
@pytest.mark.parametrize("fused", [None, False, True], ids=["default", "fused=False", "fused=True"])
def test_training_under_autocast(name: str, fused: bool | None) -> None:
    """Without a scaler, which bfloat16 does not need, and with one."""
    x, labels = randn((64, 12), 1), torch.arange(64) % 4
    lr = 0.1 if name == "SGD" else 0.02
    for scaled in (False, True):
        losses: list[list[float]] = []
        weights = []
        for module in (fusedoptim, torch.optim):
            model = Net()
            extra = {"momentum": 0.9} if name == "SGD" else {}
            flags = {"fused": fused} if module is fusedoptim else {"foreach": False}
            optimizer = getattr(module, name)(model.parameters(), lr=lr, **extra, **flags)
            scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0)
            losses.append([])
            for _ in range(12):
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    scores = model(x)
                    loss = nn.functional.cross_entropy(scores, labels)
                assert scores.dtype == torch.bfloat16
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                losses[-1].append(loss.item())
            weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert losses[0][-1] < 0.8 * losses[0][0]
        # Adam's last bits differ from the for-loop's, which flips roundings to bfloat16 (2^-8) in the next pass.
        exact = name == "SGD"
        torch.testing.assert_close(*weights, rtol=0 if exact else 0.05, atol=0 if exact else 0.02)
        torch.testing.assert_close(losses[0], losses[1], rtol=0 if exact else 2**-6, atol=0)
