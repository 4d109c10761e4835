"""Benchmarks end where steps take two hundred times as long, and say of which variants they do not know all."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from benchmarks.loop import run as loop
from benchmarks.shared import variants
from benchmarks.shared.measure import interleaved, time_rounds
from benchmarks.shared.timed_training import TimedTraining


class Time:
    """A time that passes only where a slow call says so: both a clock, in seconds, and what marks are read off."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, 0

    def __call__(self) -> float:
        return self.now

    def mark(self) -> float:
        return self.now

    def between(self, marks: list[float]) -> list[float]:
        return [1e6 * (b - a) or 1.0 for a, b in pairwise(marks)]

    def slow(self, seconds: float) -> None:
        self.calls += 1
        self.now += seconds


def slow_optimizer(time: Time, seconds: float) -> Any:
    """An SGD each of whose steps takes so long."""

    class Slow(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            time.slow(seconds)
            return super().step(closure)

    return Slow


def train(time: Time, rounds: int = 4, seconds: float = 10.0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The result of a training, and what was known after the first round."""
    names = ["torch-default", "torch-fused", variants.OURS]
    training = TimedTraining("tiny-mlp", "sgd", names, rounds, 60, seconds=seconds, now=time, clock=time)
    first: list[dict[str, Any]] = []
    return training.run(first=first.append), first


def test_a_slow_variant_has_fewer_rounds_and_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time()
    module = type("Module", (), {"SGD": slow_optimizer(time, 1.0)})
    monkeypatch.setitem(variants.VARIANTS, "torch-fused", variants.Variant("torch-fused", module, {}))
    result, (first,) = train(time)
    slow = result["variants"].pop("torch-fused")
    assert slow["unfinished"] == "1 of 4 rounds, 8 of 60 iterations"
    assert slow["correct"] is None
    assert slow["loop"]["median"] == pytest.approx(1e6)
    assert time.calls < 70
    for figures in result["variants"].values():
        assert "unfinished" not in figures
        assert figures["correct"] is True
    assert first["variants"]["torch-fused"]["loop"]["median"] == pytest.approx(1e6)
    table = dict(zip(first["variants"], loop.case_table(first).rows, strict=True))
    assert table["torch-fused"][-1] == "not checked, unfinished: 1 of 4 rounds, 8 of 60 iterations"
    assert table["torch-default"][-1] == "not checked"


def test_where_all_is_slow_the_first_table_stands_within_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a second for each iteration, as on a busy machine, and the seconds that a run has by default."""
    time = Time()
    forward = torch.nn.Sequential.forward

    def slow(self: Any, x: Any) -> Any:
        time.slow(0.5)
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Sequential, "forward", slow)
    ends: list[float] = []
    training = TimedTraining(
        "tiny-mlp", "adam", variants.DISTINCT, 5, None, "clip",
        seconds=loop.SECONDS, now=time, clock=time,
    )  # fmt: skip
    result = training.run(first=lambda _: ends.append(time.now))
    assert ends[0] < 60
    assert time.now < 200
    assert all(figures["unfinished"].startswith("1 of 5 rounds, ") for figures in result["variants"].values())


def test_every_round_has_all_in_another_order() -> None:
    rounds = [order for order in zip(*[interleaved("abcdef", 9)] * 6, strict=True)]  # noqa: C416
    assert all(sorted(order) == list("abcdef") for order in rounds)
    assert len(set(rounds)) > 6


def test_rounds_end_for_a_call_that_has_had_its_time() -> None:
    time = Time()
    calls = {"fast": lambda: time.slow(0.001), "slow": lambda: time.slow(3.0)}
    times = time_rounds(calls, 20, 4, warm_up=3, seconds=5.0, clock=time)
    assert len(times["fast"]) == 20
    assert times["slow"] == [pytest.approx(3e6)], "one round, of one call"
    assert time.calls == 3 + 20 * 4 + 2 + 1
    assert len(time_rounds(calls, 20, seconds=5.0, fewest=3, clock=time)["slow"]) == 3
