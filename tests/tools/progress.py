"""How far a run of tests is, where output goes to a file: a line every half minute, with the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pytest

SECONDS = 30.0  # between two lines
FEWEST = 0.2  # of the tests, before the time left is told: the longest come first


class Progress:
    """A plugin of pytest.

    Args:
        say: What to do with a line.
        clock: Seconds, of which only differences count.
    """

    def __init__(self, say: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._total = self._done = self._failed = 0
        self._begin = self._last = clock()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._total = self._total or len(session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        self._total = len(ids)  # each process has collected all

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._failed += report.failed
        self._done += report.when == "teardown"
        now = self._clock()
        if now - self._last < SECONDS or not 0 < self._done < self._total:
            return
        self._last, passed = now, now - self._begin
        failed = f", {self._failed} failed" if self._failed else ""
        line = f"{self._done:,} of {self._total:,} tests{failed} after {passed:.0f} s"
        if self._done >= FEWEST * self._total:
            line += f", about {passed / self._done * (self._total - self._done):.0f} s left"
        self._say(line)
