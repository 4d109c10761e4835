"""What ``python -m benchmarks cliffs`` makes of its times, and that its situations are what they say."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from helpers import need_kernels, torch_steps

import fusedoptim
from benchmarks.publish import sections
from benchmarks.step import cliff_cases, cliffs

SITUATIONS = cliff_cases.SITUATIONS


def test_what_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against one and a half plain steps of the same round, and what torch takes for what is left to it."""
    odd = cliff_cases.Situation(by_torch=True)
    monkeypatch.setattr(cliffs, "SITUATIONS", dict.fromkeys((cliffs.PLAIN, "below", "above", "left"), odd))
    ours = {cliffs.PLAIN: [10.0, 100.0, 10.0], "below": [14, 140, 400], "above": [16, 160, 1], "left": [23, 158, 23]}
    times = {(title, who): values for title, values in ours.items() for who in ("ours", "torch")}
    times["left", "with"] = [19.0, 109.0, 19.0]
    results = cliffs.results_of(times)
    assert [r["situation"] for r in results if r["over"]] == ["above"]
    assert results[3]["allowed"]["median"] == pytest.approx(2.4)
    assert results[2]["ratio"]["median"] == pytest.approx(1.6)


@pytest.mark.parametrize("title", SITUATIONS)
def test_steps_are_correct(title: str) -> None:
    assert cliffs.is_correct(SITUATIONS[title])


def test_a_step_too_few_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter(range(10))
    original = fusedoptim.Adam.step
    monkeypatch.setattr(fusedoptim.Adam, "step", lambda self: original(self) if next(steps) else None)
    assert not cliffs.is_correct(SITUATIONS["one parameter: complex"])


def test_what_is_odd() -> None:
    """One thing each, and that still there after the steps which precede the times."""

    def made(title: str) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = SITUATIONS[title].optimizer(fusedoptim)
        optimizer.step()
        return optimizer

    weight = made("one gradient: of `Conv2d(8, 16, 1)`, channels_last").param_groups[0]["params"][0]
    assert weight.grad.stride() != weight.stride()
    assert weight.grad.is_contiguous()
    state = list(made("state of one parameter: an OrderedDict").state.values())
    assert [type(s) for s in state].count(OrderedDict) == 1
    assert type(made("`state`: an OrderedDict").state) is OrderedDict
    assert len(state) == 400
    assert len(made("one parameter: frozen").state) == 399
    alone = SITUATIONS["one parameter: in a group with `foreach=True`"].optimizer(torch.optim, alone=True)
    assert [len(group["params"]) for group in alone.param_groups] == [1, 0]


@need_kernels
def test_what_torch_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a cost of torch's is allowed for, one parameter is left to it, and nowhere else any."""
    left = torch_steps(monkeypatch)
    for title, situation in SITUATIONS.items():
        left.clear()
        situation.optimizer(fusedoptim)
        assert [sum(map(len, params)) for (params, *_) in left] == [1] * situation.by_torch, title


def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {title: SITUATIONS[title] for title in (cliffs.PLAIN, "one parameter: complex")}
    monkeypatch.setattr(cliffs, "SITUATIONS", few)
    assert cliffs.main(["--rounds", "2", "--output", str(tmp_path)]) == 0
    text = "\n".join(sections.cliffs(json.loads((tmp_path / "cliffs.json").read_text())))
    assert "| plain |" in text
    assert "one parameter: complex" in text
    assert text.count("| correct |") == 2
