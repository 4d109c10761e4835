"""``python -m benchmarks tail``: what it calls correct, and that a tail which does less is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import need_kernels

from benchmarks.loop import tail
from benchmarks.shared import shapes

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
        ("unscale + clip + step + average", {"ema_decay": 0.99}),
        ("clip + step", {"max_grad_norm": None}),
        ("clip + step", {"max_grad_norm": 0.9}),
    ],
)
def test_another_tail_is_not(work: str, less: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    adamw = tail.fusedoptim.AdamW
    monkeypatch.setattr(tail.fusedoptim, "AdamW", lambda *args, **kwargs: adamw(*args, **{**kwargs, **less}))
    assert not tail.is_correct(work, "400x64")


class OffByTwo(torch.amp.GradScaler):
    """Says half of the scale that it divides by."""

    def get_scale(self) -> float:
        return super().get_scale() / 2


def test_gradients_that_are_not_unscaled_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail.fusedoptim, "GradScaler", OffByTwo)
    assert not tail.is_correct("unscale + clip + step + average", "400x64")


@pytest.mark.parametrize("work", ["clip + step + average", "clip + step"])
def test_the_limit_moves_what_both_passes_move(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, list[list[int]]]] = []

    class Noted(tail.Probe):  # type: ignore[misc, name-defined]
        def __init__(self, kind: str, streams: Any) -> None:
            made.append((kind, [[t.data_ptr() for t in tensors] for tensors in streams]))
            super().__init__(kind, streams)

    monkeypatch.setattr(tail, "Probe", Noted)
    monkeypatch.setattr(tail, "LIMITED", [(work, "400x64")])
    params = tail.make_params("400x64")
    run, some = tail.make(work, tail.SIDES["ours"], params)
    run()
    before = [x.clone() for x in some.results()]
    for call in tail.limits(some.optimizer, params):
        call()
    assert all(map(torch.equal, some.results(), before))
    names = ("exp_avg", "exp_avg_sq", *(["ema"] if "average" in work else []))
    states = [[some.optimizer.state[p][name].data_ptr() for p in params] for name in names]
    grads = [p.grad.data_ptr() for p in params]
    assert made == [("scan", [grads]), ("step", [[p.data_ptr() for p in params], *states, grads])]
    assert tail.measure(work, "400x64", 3)["share"]["median"] > 0


def test_the_table() -> None:
    result = {**tail.measure("clip + step", "400x64", 4), "correct": True}
    assert result["ratio"]["median"] > 0
    assert result["target"] is None
    (table,) = tail.tables({"results": [result]})
    assert "| clip + step | 400x64 |" in "\n".join(table.markdown())
