"""What ``python -m benchmarks growth`` calls correct, what it measures and what it leaves out."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.growth import arena as arenas
from benchmarks.growth import run as growth
from benchmarks.publish import sections


@pytest.fixture(autouse=True)
def _as_many_threads_after_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Broken:
    """An optimizer whose steps leave some of the elements as they were."""

    def __init__(self, optimizer: Any, left: slice) -> None:
        self.state, self.optimizer, self.left = optimizer.state, optimizer, left

    def step(self) -> None:
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in params]
        self.optimizer.step()
        with torch.no_grad():
            params[-1][self.left] = before[-1][self.left]


@pytest.mark.parametrize("shapes", [((1,),), ((100,),), ((64,),) * 300], ids=["one", "hundred", "many tensors"])
def test_correct_steps_pass_and_others_do_not(shapes: tuple[tuple[int], ...]) -> None:
    arena = arenas.GrowthArena(arenas.Model(shapes, 1))
    verdicts = arena.check({name: arena.optimizer(name) for name in growth.VARIANTS})
    assert all(verdict.correct for verdict in verdicts.values()), verdicts
    broken = Broken(arena.optimizer(growth.OURS), slice(-1, None))
    assert not arena.check({growth.OURS: broken})[growth.OURS].correct


def test_a_chunk_in_the_place_of_another_is_noticed() -> None:
    size = arenas.PERIOD + 2**17
    arena = arenas.GrowthArena(arenas.one_tensor(size))
    ours = arena.optimizer(growth.OURS)
    assert arena.check({growth.OURS: ours})[growth.OURS].correct
    write = arena.write

    def displaced(tensors: list[torch.Tensor], *how: Any) -> None:
        write(tensors, *how)
        if tensors is arena.grads:
            tensors[0][-(2**16) :] = tensors[0][: 2**16].clone()

    arena.write = displaced
    assert not arena.check({growth.OURS: ours})[growth.OURS].correct


def test_slices_of_large_tensors_are_few_and_reach_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arenas, "PERIOD", 7)
    monkeypatch.setattr(arenas, "SLICES", 3)
    slices = arenas.GrowthArena(arenas.one_tensor(100)).slices()
    assert [(part.start, part.stop) for part in slices] == [(0, 7), (49, 56), (98, 100)]


def test_slow_calls_take_few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "BUDGET", 0.02)
    calls: list[str] = []

    def slow() -> None:
        calls.append("slow")
        time.sleep(0.02)

    times = growth.time_calls({"fast": lambda: calls.append("fast"), "slow": slow}, rounds=6)
    assert len(times["slow"]) == growth.LEAST_ROUNDS
    assert growth.LEAST_ROUNDS < len(times["fast"]) <= 6
    assert min(times["slow"]) >= 0.019e6
    assert calls.count("slow") == 1 + growth.LEAST_ROUNDS
    assert calls.count("fast") > 100


def test_what_does_not_fit_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "is_free", lambda size: size <= 128 * 16)
    left_out: list[str] = []
    results = list(growth.measured("elements", [16, 128, 256], 1, math.inf, left_out))
    assert [result["size"] for result in results] == [16, 128]
    assert growth.FOR_LOOP in results[0]["variants"]
    assert growth.FOR_LOOP not in results[1]["variants"]
    assert [note.split(",")[0] for note in left_out] == ["128 elements", "from 256 elements on"]
    assert not list(growth.measured("elements", [16], 1, -math.inf, left_out))


def test_page(tmp_path: Path) -> None:
    assert growth.main(["--quick", "--most", "64", "--rounds", "2", "--output", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "growth.json").read_text())
    written = "\n".join(sections.tables_of("growth", record))
    assert "| 64 | " in written
    assert "WRONG" not in written
    record["axes"]["tensors"][0]["variants"][growth.OURS]["correct"] = False
    assert "WRONG" in "\n".join(sections.tables_of("growth", record))
