"""What ``make bench-peers`` compares with: the check of foreign optimizers, their memory, failures, and the page."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.peers import arena as peers_arena
from benchmarks.peers import list as peers_list
from benchmarks.peers import run as peers
from benchmarks.publish import sections
from benchmarks.shared import shapes

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = shapes.Model(((7, 5), (64,), (3,)), 3)
OURS = "fusedoptim"


class Renamed(torch.optim.Adam):
    """An Adam of another package: other names for the state, and an int for the step."""

    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                state = self.state[p]
                state["step"] += 1
                t, (m, v) = state["step"], (state["first"], state["second"])
                m.lerp_(p.grad, 0.1)
                v.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
                p.sub_(1e-3 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8))


class Rough(Renamed):
    """The same, off by a thousandth."""

    def step(self, closure: Any = None) -> None:
        before = [p.detach().clone() for p in self.param_groups[0]["params"]]
        super().step()
        with torch.no_grad():
            for p, b in zip(self.param_groups[0]["params"], before, strict=True):
                p.lerp_(b, 1e-3)


class Failing(Renamed):
    """One that needs what is not there."""

    def step(self, closure: Any = None) -> None:
        try:
            raise OSError("no such\ncompiler")
        except OSError as error:
            raise RuntimeError("failed to build") from error


class Hanging(Renamed):
    """One that waits for ever."""

    def step(self, closure: Any = None) -> None:
        time.sleep(60)


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes above as peers, under their own names."""
    for kind in (Renamed, Rough, Failing, Hanging):
        peer = peers_list.Peer(
            kind.__name__,
            "some",
            __name__,
            {"adam": kind.__name__},
            peers_list.ARGUMENTS,
            names={"exp_avg": "first", "exp_avg_sq": "second"},
            also={"step": 0},
        )
        monkeypatch.setitem(peers_list.PEERS, peer.name, peer)


def test_peers_are_checked_and_failures_noted(foreign: None) -> None:
    arena = peers_arena.PeerArena(MODEL, "adam", limit_s=0.2)
    names = [OURS, "torch-fused", "Renamed", "Rough", "Failing", "Hanging"]
    verdicts = arena.check(names)
    assert {name: verdicts[name].correct for name in names} == {
        OURS: True, "torch-fused": True, "Renamed": True, "Rough": False, "Failing": False, "Hanging": False,
    }  # fmt: skip
    assert arena.failures == {
        "Failing": "RuntimeError: failed to build; OSError: no such compiler",
        "Hanging": "TookTooLongError: given up after 0.2 s",
    }
    state = arena.optimizers["Renamed"].state[arena.params[0]]
    assert state["first"] is arena.state["exp_avg"][0]
    before = arena.params[0].detach().clone()
    arena.step("Renamed")()
    assert state["step"] == 4, "the optimizer that was checked is the one that is timed"
    assert not torch.equal(before, arena.params[0])


def test_every_peer_of_torch_and_ours_is_right() -> None:
    for rule in ("sgd", "adam", "adamw"):
        arena = peers_arena.PeerArena(MODEL, rule)
        names = [name for name, peer in peers_list.PEERS.items() if peer.variant and not peer.compiled]
        assert OURS in names
        assert len(names) == 4
        assert all(verdict.correct for verdict in arena.check(names).values())


def test_memory_of_state_counts_what_is_shared_once() -> None:
    params = [torch.zeros(100, requires_grad=True), torch.zeros(10, requires_grad=True)]
    optimizer = torch.optim.SGD(params, lr=1)
    table = torch.zeros(256)
    optimizer.state[params[0]] = {"codes": torch.zeros(100, dtype=torch.uint8), "map": table, "step": 3}
    optimizer.state[params[1]] = {"exp_avg": torch.zeros(10), "map": table, "more": [torch.zeros(2)], "none": None}
    assert peers_arena.state_bytes(optimizer) == 100 + 4 * 256 + 4 * 10 + 4 * 2


def test_nothing_is_compiled_when_it_is_late() -> None:
    assert peers.why_not("torch-compile", "adam", late=False) is None
    assert "--minutes" in (peers.why_not("torch-compile", "adam", late=True) or "")
    assert peers.why_not("torch-fused", "adam", late=True) is None
    assert peers.why_not("deepspeed", "sgd", late=False) == peers_list.NO_RULE


def figures(median: float, result: str = "correct") -> dict[str, Any]:
    """What is kept of a peer on a model."""
    spread = {"median": median, "low": median - 0.1, "high": median + 0.1}
    error = {"overall": 1e-7, "worst": 2e-7}
    return {"time": spread, "ratio": spread, "result": result, "error": error, "state_bytes_per_element": 8.0}


def record(**ratios: float) -> dict[str, Any]:
    """Results of two models with one optimizer."""
    variants = {OURS: figures(1.0), **{name.replace("_", "-"): figures(ratio) for name, ratio in ratios.items()}}
    missing = {"deepspeed": "no compiler"}
    models = ("tutorial-mlp", "gpt2")
    results = [{"model": m, "optimizer": "adam", "variants": variants, "missing": missing} for m in models]
    return {"results": results}


def test_the_page_says_what_is_faster_and_what_is_missing() -> None:
    assert list(peers.not_measured(record())) == ["deepspeed, Adam on tutorial-mlp, gpt2: no compiler"]
    rows = {line[0]: line[1:] for line in peers.rows(record(torch_fused=0.97))}
    fast = "**0.97 (0.97 x)**"
    assert rows["Adam, torch-fused"] == ["-", fast, "-", fast, "1.0e-07", "2.0e-07", "correct", "8.00"]


def test_a_wrong_result_says_so_and_an_inexact_one_does_not() -> None:
    judgement = peers_arena.judgement
    assert judgement(True, 1e-7, 8) == "correct"
    assert judgement(False, 1e-6, 32) == "less exact"
    assert judgement(False, 0.5, 32) == judgement(False, float("nan"), 32) == "WRONG"
    assert judgement(False, 0.5, 8) == "approximate"
    assert peers.cell(figures(0.5, "WRONG")) == "WRONG: **0.50 (0.50 x)**"
    assert peers.cell(figures(1.5, "approximate")) == "1.50 (1.50 x)"


def test_from_measurement_to_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "prepare", lambda: None)
    options = "--quick --model tutorial-mlp --optimizer sgd --peers torch-fused deepspeed --rounds 2 --output"
    assert peers.main([*options.split(), str(tmp_path)]) == 0
    text = "\n".join(sections.peers(json.loads((tmp_path / "peers.json").read_text())))
    assert "\n| SGD, torch-fused | - | " in text
    assert f"- deepspeed, SGD on tutorial-mlp: {peers_list.NO_RULE}" in text
