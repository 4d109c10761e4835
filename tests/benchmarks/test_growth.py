"""What ``python -m benchmarks growth`` finds in curves, how it checks steps, what it measures and what it writes."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.growth import arena as arenas
from benchmarks.growth import breaks, tables
from benchmarks.growth import model as models
from benchmarks.growth import run as growth
from benchmarks.growth import time as timing
from benchmarks.publish import charts

SIZES = [2**i for i in range(24)]


@pytest.fixture(autouse=True)
def _as_many_threads_after_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def curve(time_of: Callable[[int], float], noise: float = 0.0) -> list[Any]:
    """Medians of a known curve, with quartiles close by."""
    some = random.Random(0)
    medians = [time_of(size) * (1 + noise * some.uniform(-1, 1)) for size in SIZES]
    return [{"median": median, "low": 0.99 * median, "high": 1.01 * median} for median in medians]


def kinked(size: int) -> float:
    """Three microseconds; a nanosecond for each of 65,536 elements, four for each further one."""
    return 3 + 1e-3 * size + 3e-3 * max(0, size - 2**16)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_a_break_point_is_found_where_the_cost_changes_and_nowhere_else(noise: float) -> None:
    first, second = breaks.pieces(SIZES, curve(kinked, noise))
    assert (first.first, second.last) == (SIZES[0], SIZES[-1])
    assert first.last == second.first
    assert 2**16 <= first.last <= 2**17
    assert first.fixed == pytest.approx(3, rel=0.1)
    assert first.each == pytest.approx(1e-3, rel=0.15)
    assert second.each == pytest.approx(4e-3, rel=0.15)
    assert len(breaks.pieces(SIZES, curve(lambda size: 3 + 1e-3 * size, noise))) == 1


def test_scatter_within_the_quartiles_is_no_break_point() -> None:
    spreads = [{"median": 3.0 if size % 3 == 1 else 4.5, "low": 2.0, "high": 6.0} for size in SIZES]
    assert len(breaks.pieces(SIZES, spreads)) == 1
    narrow = [dict.fromkeys(spread, spread["median"]) for spread in spreads]
    assert len(breaks.pieces(SIZES, narrow)) > 1


def test_sizes_at_which_a_level_is_reached() -> None:
    sizes, values = [1, 10, 100, 1000, 10_000], [1.0, 10.0, 100.0, 10.0, 1.0]
    assert breaks.crossing(sizes, values, 31.6) == pytest.approx(31.6)
    assert breaks.crossing(sizes, values, 101) is None
    assert breaks.crossing(sizes, values, 0.5) == 1
    assert breaks.stretches(sizes, values, 1) == [(1, 10_000)]
    (begin, end), *more = breaks.stretches(sizes, values, 31.6)
    assert not more
    assert begin == pytest.approx(31.6)
    assert end == pytest.approx(316, rel=0.01)
    assert len(breaks.stretches(sizes, [3.0, 1.0, 3.0, 1.0, 3.0], 2)) == 3


def test_a_second_thread_pays_only_where_it_goes_on_paying() -> None:
    assert breaks.pays_from([1, 2, 4, 8], [1.0, 1.5, 1.0, 1.6]) == 8
    assert breaks.pays_from([1, 2, 4, 8], [1.0, 1.5, 1.2, 1.6]) == 2
    assert breaks.pays_from([1, 2], [1.5, 1.0]) is None


def test_caches_within_a_factor_of_two() -> None:
    caches = {"L1": 2**15, "L2": 2**21}
    assert breaks.outgrown(2**20, caches) == ["L2"]
    assert breaks.outgrown(2**22 + 1, caches) == []


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
    verdicts = arena.check({name: arena.optimizer(name) for name in timing.VARIANTS})
    assert all(verdict.correct for verdict in verdicts.values()), verdicts
    broken = Broken(arena.optimizer(timing.OURS), slice(-1, None))
    assert not arena.check({timing.OURS: broken})[timing.OURS].correct


def test_a_chunk_in_the_place_of_another_is_noticed() -> None:
    size = arenas.PERIOD + 2**17
    arena = arenas.GrowthArena(arenas.one_tensor(size), arenas.make_pool(size))
    ours = arena.optimizer(timing.OURS)
    assert arena.check({timing.OURS: ours})[timing.OURS].correct
    write = arena.write

    def displaced(tensors: list[torch.Tensor], *how: Any) -> None:
        write(tensors, *how)
        if tensors is arena.grads:
            tensors[0][-(2**16) :] = tensors[0][: 2**16].clone()

    arena.write = displaced
    assert not arena.check({timing.OURS: ours})[timing.OURS].correct


def test_slices_of_large_tensors_are_few_and_reach_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arenas, "PERIOD", 7)
    monkeypatch.setattr(arenas, "SLICES", 3)
    slices = arenas.GrowthArena(arenas.one_tensor(100)).slices()
    assert [(part.start, part.stop) for part in slices] == [(0, 7), (49, 56), (98, 100)]


def test_slow_calls_take_few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "BUDGET", 0.02)
    calls: list[str] = []

    def slow() -> None:
        calls.append("slow")
        time.sleep(0.02)

    times = timing.measure({("fast", 1): lambda: calls.append("fast"), ("slow", 1): slow}, rounds=6)
    assert len(times["slow", 1]) == timing.LEAST_ROUNDS
    assert timing.LEAST_ROUNDS < len(times["fast", 1]) <= 6
    assert min(times["slow", 1]) >= 0.019e6
    assert calls.count("slow") == 1 + timing.LEAST_ROUNDS
    assert calls.count("fast") > 100


def record_of(parameters: Any) -> dict[str, Any]:
    """Results that follow the model exactly."""
    results = []
    for size in SIZES:
        moving = {k: 28 * size / parameters.bandwidth_of(size, k, None) if size > models.FEW else 0 for k in (1, 2)}
        limit = {k: 1 + (k > 1) * parameters.wake + moving[k] for k in (1, 2)}
        times = {name: {k: parameters.time(name, size, k) for k in (1, 2)} for name in models.MODELLED}
        variants = {name: {"time": {str(k): {"median": t, "low": t, "high": t} for k, t in of.items()}, "threads": "2"}
                    for name, of in (times | {models.LIMIT: limit}).items()}  # fmt: skip
        results.append({"elements": size, "moved": 28 * size, "variants": variants})
    caches = {"L2": {"bytes": 2**21, "shared": False}}
    return {"axes": {"elements": results}, "caches": caches, "settings": {"threads": 2}}


def test_the_model_finds_the_parameters_of_its_own_times() -> None:
    sizes = [size for size in SIZES if size > models.FEW]
    one = [60e3 if size <= 2**17 else 10e3 for size in sizes]
    known = models.Parameters(
        dict.fromkeys(models.MODELLED, 6e-4), dict.fromkeys(models.MODELLED, 4.0), 5.0, sizes,
        {1: one, 2: [1.8 * rate for rate in one]}, 2**21,
    )  # fmt: skip
    found = models.model(record_of(known))
    assert found is not None
    fitted = found["parameters"]
    assert fitted["wake"] == pytest.approx(5)
    assert fitted["arithmetic"] == pytest.approx(known.arithmetic, rel=0.01)
    assert fitted["bandwidth"][2][4:] == pytest.approx(known.bandwidth[2][4:], rel=0.01)
    assert all(row["off"] == pytest.approx(1, rel=0.01) for row in found["held_against"] if row["elements"] > 2**12)


def test_a_time_is_that_of_the_threads_that_take_part() -> None:
    known = models.Parameters(
        dict.fromkeys(models.MODELLED, 1e-3), dict.fromkeys(models.MODELLED, 4.0), 5.0, [128, 2**20],
        {1: [1e9, 1e9], 2: [1e9, 1e9]}, 2**21,
    )  # fmt: skip
    assert known.time(models.OURS, models.GRAIN, 2) == pytest.approx(4 + 1e-3 * models.GRAIN)
    assert known.time(models.OURS, 2 * models.GRAIN, 2) == pytest.approx(4 + 5 + 1e-3 * models.GRAIN)
    assert known.time("torch-fused", models.GRAIN, 2) == pytest.approx(4 + 5 + 1e-3 * models.GRAIN / 2)


def test_predictions_are_bound_by_arithmetic_by_caches_and_by_the_stated_memory() -> None:
    sizes = [2**i for i in range(7, 29)]
    known = models.Parameters(
        dict.fromkeys(models.MODELLED, 6e-4), dict.fromkeys(models.MODELLED, 0.0), 0.0, sizes,
        {1: [60e3 if size <= 2**17 else 10e3 for size in sizes], 2: [0.0] * len(sizes)}, 2**21,
    )  # fmt: skip
    times = {
        (row["elements"], row["threads"], row["stated"]): row["time"]
        for row in models.predicted(known)
        if row["variant"] == models.OURS
    }
    assert times[2**28, 16, 80] == pytest.approx(28 * 2**28 / 80e3)
    assert times[2**28, 4, 300] == pytest.approx(28 * 2**28 / 40e3)
    assert times[2**20, 8, 80] == pytest.approx(6e-4 * 2**20 / 8)
    assert times[2**16, 16, 80] == pytest.approx(6e-4 * 2**16 / 2)


def test_what_does_not_fit_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = growth.Limits(1)
    monkeypatch.setattr(growth.Limits, "in_memory", staticmethod(lambda size: size <= 16 * 64))
    args = growth.parse(["--quick", "--rounds", "1", "--threads", "1"])
    results = list(growth.measured(growth.AXES["elements"], [16, 64, 128, 256], args, limits))
    assert [result["size"] for result in results] == [16, 64, 128]
    assert timing.VARIANTS[0] in results[0]["variants"]
    assert timing.VARIANTS[0] not in results[2]["variants"]
    assert [note.split(":")[0] for note in limits.left_out[:2]] == [f"{n} elements, torch-default" for n in (64, 128)]
    assert len(limits.left_out) == 3
    assert limits.left_out[-1].startswith("from 256 elements on")


def test_from_measurement_to_page_and_chart(tmp_path: Path) -> None:
    assert growth.main(["--quick", "--most", "64", "--rounds", "2", "--output", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "growth.json").read_text())
    written = "\n".join(tables.section(record))
    assert "| 64 | " in written
    assert "WRONG" not in written
    record["axes"]["tensors"][0]["variants"][timing.OURS]["correct"] = False
    assert "WRONG" in "\n".join(tables.section(record))
    charts.growth(record, tmp_path / "growth.png", "a note")
    assert (tmp_path / "growth.png").stat().st_size > 10_000
