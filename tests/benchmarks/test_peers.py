"""What ``make bench-peers`` compares with: the check of foreign optimizers, their memory, failures, and the page."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from benchmarks.peers import arena as peers_arena
from benchmarks.peers import list as peers_list
from benchmarks.peers import run as peers
from benchmarks.peers import setup as peers_setup
from benchmarks.peers import tables as peers_page
from benchmarks.shared import measure, shapes

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
    assert set(arena.seconds) == {"torch-default", "torch-foreach", *names} - {"Failing", "Hanging"}
    assert len(arena.seconds["Renamed"]) == 3
    state = arena.optimizers["Renamed"].state[arena.params[0]]
    assert state["first"] is arena.state["exp_avg"][0]
    before = arena.params[0].detach().clone()
    arena.step("Renamed")()
    assert state["step"] == 4, "the optimizer that was checked is the one that is timed"
    assert not torch.equal(before, arena.params[0])
    assert len(arena.seconds["Renamed"]) == 3, "and it is timed bare"


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


def test_those_that_have_had_their_rounds_leave() -> None:
    order = list(measure.interleaved(["a", "b"], {"a": 3, "b": 1}))
    assert sorted(order[:2]) == ["a", "b"]
    assert order[2:] == ["a", "a"]
    assert list(measure.interleaved(["a", "b"], {"a": 2, "b": 2})) == list(measure.interleaved(["a", "b"], 2))


def test_what_would_take_too_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = peers.Pace(minutes=10)
    pace.note("bitsandbytes", ("400x64", "adam"), 0.5)  # by its many small tensors
    pace.note("bitsandbytes", ("tutorial-mlp", "adam"), 0.25)
    assert pace.why_not("bitsandbytes", ("400x64", "adam")) is None
    assert "on tutorial-mlp, a step takes about 16 s" in pace.why_not("bitsandbytes", ("resnet50", "adam"))
    assert pace.why_not("bitsandbytes", ("resnet50", "sgd")) is None
    assert pace.why_not("torch-compile", ("gpt2", "adam")) is None
    monkeypatch.setattr(pace, "begin", pace.begin - 301)
    assert "minutes" in pace.why_not("torch-compile", ("gpt2", "adam"))
    assert pace.why_not("torch-fused", ("gpt2", "adam")) is None


def figures(median: float, result: str = "correct") -> dict[str, Any]:
    """What is kept of a peer on a model."""
    spread = {"median": median, "low": median - 0.1, "high": median + 0.1}
    error = {"overall": 1e-7, "worst": 2e-7}
    first = {"first_step_s": 20 * median, "from_cache": False}
    return {"time": spread, "ratio": spread, "result": result, "error": error, "state_bytes_per_element": 8.0, **first}


def record(**ratios: float) -> dict[str, Any]:
    """Results of two models with one optimizer."""
    variants = {OURS: figures(1.0), **{name.replace("_", "-"): figures(ratio) for name, ratio in ratios.items()}}
    missing = {"deepspeed": "no compiler"}
    models = ("tutorial-mlp", "gpt2")
    results = [{"model": m, "optimizer": "adam", "variants": variants, "missing": missing} for m in models]
    return {"results": results, "setup": {"torch-fused": {"install_s": 1.0, "first_step_s": 2.0}}}


def test_the_page_says_what_is_faster_and_what_is_missing() -> None:
    assert peers_page.faster(record(torch_fused=1.3)) == "Faster than fusedoptim: none."
    said = peers_page.faster(record(torch_fused=0.97))
    assert said.count("torch-fused, Adam on ") == 2
    assert "0.97 x, quartiles 0.87 and 1.07, correct" in said
    assert list(peers_page.not_measured(record())) == ["- deepspeed, Adam: no compiler"]
    rows = {line[0]: line[1:] for line in peers_page.rows(record(torch_fused=0.97))}
    assert rows["Adam, torch-fused"] == ["-", "**0.97 (0.97 x)**", "-", "**0.97 (0.97 x)**", "1.0e-07", "2.0e-07",
                                         "correct", "8.00", "3.00"]  # fmt: skip


def test_what_was_compiled_is_remembered_when_it_comes_from_the_cache() -> None:
    old, new = figures(1.0), {**figures(1.0), "first_step_s": 0.1, "from_cache": True}
    again = {"variants": {"torch-compile": new, "torchao-8bit": {**new}}}
    peers.remember_compiling(again, {"variants": {"torch-compile": old}})
    assert again["variants"]["torch-compile"]["first_step_s"] == 20
    assert again["variants"]["torchao-8bit"]["first_step_s"] == 0.1
    said = peers_page.compiling({"results": [{"model": "gpt2", "optimizer": "sgd", **again}]})
    assert said == "First steps of more than 5 s, the longest of each: torch-compile 20.00 s (SGD on gpt2)."


def test_a_wrong_result_says_so_and_an_inexact_one_does_not() -> None:
    judgement = peers_arena.judgement
    assert judgement(True, 1e-7, 8) == "correct"
    assert judgement(False, 1e-6, 32) == "less exact"
    assert judgement(False, 0.5, 32) == judgement(False, float("nan"), 32) == "WRONG"
    assert judgement(False, 0.5, 8) == "approximate"
    assert peers_page.cell(figures(0.5, "WRONG")) == "WRONG: **0.50 (0.50 x)**"
    assert peers_page.cell(figures(1.5, "approximate")) == "1.50 (1.50 x)"


def test_the_versions_that_set_up_installs_are_those_of_the_comparison() -> None:
    for package in peers_list.PACKAGES:
        assert package == OURS or "==" in peers_setup.pinned(package)
