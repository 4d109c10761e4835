"""What ``python -m benchmarks busy`` measures with: series of steps, processes that spin."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks.busy import processes
from benchmarks.busy import run as busy
from benchmarks.publish import sections

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def processor_time(pid: int) -> int:
    """Ticks for which a process has run."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@linux
def test_spinners_run_and_stand_still_as_told() -> None:
    with busy.Spinners(2) as some:
        first, second = (process.pid for process in some.processes)
        some.run(1)
        before = processor_time(first), processor_time(second)
        time.sleep(0.5)
        assert processor_time(first) > before[0]
        assert processor_time(second) == before[1]
        some.run(0)
        before = processor_time(first), processor_time(second)
        time.sleep(0.2)
        assert (processor_time(first), processor_time(second)) == before
    assert all(process.returncode is not None for process in some.processes)


def test_a_series_ends_by_count_and_by_time() -> None:
    calls: list[str] = []
    assert len(busy.time_series(lambda: calls.append("step"), 10)) == len(calls) == 10
    assert len(busy.time_series(lambda: time.sleep(0.02), 1000, at_most=0.1)) < 10
    assert sum(busy.time_series(lambda: time.sleep(0.01), 0, at_least=0.1)) >= 0.09e6


def test_the_largest_step_is_compared_within_its_block() -> None:
    quiet, slow = [1.0] * busy.BLOCK, [1.0] * (busy.BLOCK - 1) + [9.0]
    found = busy.largest([slow, quiet, slow])
    assert found["of"] == busy.BLOCK
    assert found["ratio"]["median"] == 9.0


@pytest.mark.parametrize("way", processes.WAYS)
def test_what_becomes_of_a_forked_child(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.forked(way, lambda: {"time": 3.0, "parent": os.getppid()}) == {"time": 3.0, "parent": os.getpid()}
    monkeypatch.setattr(processes, "TIMEOUT", 0.2)
    assert processes.forked(way, lambda: time.sleep(60) or {}) == {"hang": 0.2}
    assert processes.forked(way, lambda: os._exit(1)) == {"error": "the child died"}


def test_a_child_that_hangs_or_is_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = {None: {"hang": 8.0}, 1: {"time": 4.0, "checksum": 2}}
    fork = lambda work, model, variant, way, threads: ({"time": 2.0, "checksum": 1}, ends[threads])  # noqa: E731
    monkeypatch.setattr(processes, "alone", fork)
    results = processes.forks_of("tutorial-mlp", 2)
    assert [busy.outcome(r) for r in results] == ["hangs", "WRONG"] * 4
    assert [r.get("correct") for r in results] == [None, False] * 2 + [False] * 4


def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Medians, means and the largest step stand under their state."""
    monkeypatch.setattr(processes, "COUNTS", (1, 2))
    monkeypatch.setattr(processes, "WAYS", ("os.fork",))
    monkeypatch.setattr(busy, "WARM_UP_S", 0.0)
    monkeypatch.setattr(busy, "QUICK_LIMIT_S", 0.01)
    assert busy.main(["--quick", "--model", "tutorial-mlp", "--rounds", "1", "--output", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "busy.json").read_text())
    spreads = {name: {"median": value} for name, value in (("time", 10.0), ("mean", 20.0))}
    for r in record["results"]["tutorial-mlp"]:
        r.update(spreads, largest={"ratio": {"median": 3.0}}, correct=r["variant"] != "torch-fused")
    text = "\n".join(sections.tables_of("busy", record))
    assert "| tutorial-mlp, µs | quiet, median | quiet, mean | quiet, largest / median | 1 busy, median |" in text
    assert "| fusedoptim | 10.00 | 20.00 | 3.00 | 10.00 | 20.00 | 3.00 | 10.00 | 20.00 | 3.00 |" in text
    assert "| torch-fused | WRONG | WRONG |" in text
