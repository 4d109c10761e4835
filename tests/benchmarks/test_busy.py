"""What ``python -m benchmarks busy`` measures with: series of steps, processes that spin, forked children."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.busy import parts
from benchmarks.publish import sections
from benchmarks.shared import forked as forks
from benchmarks.shared.files import RESULTS

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def processor_time(pid: int) -> int:
    """Ticks for which a process has run."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@linux
def test_spinners_run_and_stand_still_as_told() -> None:
    with parts.Spinners(2) as some:
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
    assert len(parts.time_series(lambda: calls.append("step"), 10)) == len(calls) == 10
    assert len(parts.time_series(lambda: time.sleep(0.02), 1000, at_most=0.1)) < 10
    assert sum(parts.time_series(lambda: time.sleep(0.01), 0, at_least=0.1)) >= 0.09e6


def test_the_largest_step_is_compared_within_its_block() -> None:
    quiet, slow = [1.0] * parts.BLOCK, [1.0] * (parts.BLOCK - 1) + [9.0]
    found = parts.largest([slow, quiet, slow])
    assert found["of"] == parts.BLOCK
    assert found["ratio"]["median"] == 9.0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("way", parts.WAYS)
@pytest.mark.parametrize(
    ("task", "outcome"),
    [
        (lambda: {"time": 1.0}, {"time": 1.0}),
        (lambda: time.sleep(60), {"hang": 1.0}),
        (lambda: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_forked_children_answer_hang_or_fail(
    way: str, task: Any, outcome: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "TIMEOUT", 1.0)
    found = forks.forked(way, task)
    if isinstance(outcome, str):
        assert outcome in found["error"]
    else:
        assert found == outcome


def test_a_child_of_other_bits_is_wrong_and_one_that_hangs_is_none() -> None:
    def one(checksum: int) -> dict[str, Any]:
        return {"parent": {"time": 2.0, "checksum": 7}, "child": {"time": 3.0, "checksum": checksum},
                "parent_after": {"time": 2.0, "checksum": 7}}  # fmt: skip

    assert parts.summary([one(7), one(7)])["correct"]
    assert not parts.summary([one(7), one(8)])["correct"]
    hangs = {**one(7), "child": {"hang": 8.0}}
    summary = parts.summary([one(7), hangs])
    assert not summary["correct"]
    assert summary["failure"] == {"hang": 8.0}


def test_page() -> None:
    """Medians and means stand under their state, and a child that hangs is said to."""

    def figures(variant: str, state: str, time: float) -> dict[str, Any]:
        spread = {"time": time, "mean": 2 * time}
        return {
            "variant": variant,
            "state": state,
            "largest": {"ratio": {"median": 3.0}},
            **{name: {"median": value} for name, value in spread.items()},
        }

    machine = json.loads((RESULTS / "busy.json").read_text())["busy"]["resnet50"]["machine"]
    busy = [figures("ours", "quiet", 10), figures("ours", "busy", 20)]
    child = {"variant": "ours", "way": "os.fork", "child_threads": 2}
    record = {
        "busy": {"resnet50": {"machine": machine, "results": busy}},
        "threads": {"resnet50": {"results": [{"variant": "ours", "threads": 3, "time": {"median": 7.0}}]}},
        "fork": {"resnet50": {"results": [{**child, "failure": "it hangs"}, {**child, "correct": False}]}},
    }
    text = "\n".join(sections.busy(record))
    assert "| ours | 10.00 | 20.00 | 3.00 | 20.00 | 40.00 | 3.00 |" in text
    assert "| ours | 7.00 |" in text
    assert "| ours, os.fork | 2 | hangs |" in text
    assert "| ours, os.fork | 2 | WRONG |" in text
