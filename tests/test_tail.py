"""``benchmarks/tail.py``: what it calls correct, and that a tail which does less is not."""

from __future__ import annotations

from typing import Any

import benchmark_modules
import pytest
import torch
from helpers import need_kernels

tail, shapes, measure = benchmark_modules.load("tail", "shapes", "measure", needs=("rich",))
pytestmark = need_kernels


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tensors."""
    monkeypatch.setitem(tail.MODELS, "400x64", shapes.Model(((40, 5), (300,)), 3))


@pytest.mark.parametrize("work", tail.WORKS)
def test_ours_is_correct(work: str) -> None:
    assert tail.is_correct(work, "400x64")


@pytest.mark.parametrize(
    ("work", "less"),
    [
        ("clip + step + average", {"ema_decay": 0.99}),
        ("clip + step", {"max_grad_norm": None}),
        ("clip + step", {"max_grad_norm": 0.9}),
    ],
)
def test_another_tail_is_not(work: str, less: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    adamw = tail.fusedoptim.AdamW
    monkeypatch.setattr(tail.fusedoptim, "AdamW", lambda *args, **kwargs: adamw(*args, **{**kwargs, **less}))
    assert not tail.is_correct(work, "400x64")


def test_the_table() -> None:
    result = {**tail.measure("clip + step", "400x64", 4), "correct": True}
    assert result["ratio"]["median"] > 0
    assert result["target"] is None
    machine = measure.machine_info(torch.device("cpu"))
    assert "| clip + step | 400x64 |" in "\n".join(tail.lines({"results": [result], "machine": machine}))
