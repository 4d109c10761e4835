"""Lines about the progress of a run of tests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from progress import Progress


def test_a_line_every_half_minute() -> None:
    now, lines = 0.0, list[str]()
    progress = Progress(lines.append, lambda: now)
    progress.pytest_xdist_node_collection_finished(ids=["a"] * 100)
    for done in range(1, 101):
        now += 2.0
        report: Any = SimpleNamespace(when="teardown", failed=done == 20)
        progress.pytest_runtest_logreport(report)
    assert lines[:2] == [
        "15 of 100 tests after 30 s",
        "30 of 100 tests, 1 failed after 60 s, about 140 s left",
    ]
    assert len(lines) == 6
