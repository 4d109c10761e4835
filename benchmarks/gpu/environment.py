"""What a bare machine may lack, and what stands in for it: no part is lost for want of a package it hardly uses."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from benchmarks import ROOT

RICH = ("box", "console", "markup", "progress", "table")


def missing() -> list[str]:
    """What is not installed, and hardly needed: marks of tests, and tables in colour."""
    return [name for name in ("pytest", "rich") if name not in sys.modules and importlib.util.find_spec(name) is None]


@contextmanager
def stand_ins() -> Iterator[None]:
    """Within it, imports of what is missing succeed; afterwards all but `rich` is missing again, as torch looks too."""
    absent = missing()
    if "rich" in absent:  # pip carries a copy of its own
        for part in ("rich", *(f"rich.{part}" for part in RICH)):
            sys.modules[part] = importlib.import_module(f"pip._vendor.{part}")
    if "pytest" in absent:
        sys.modules["pytest"] = mock.MagicMock()
    yield
    if "pytest" in absent:
        del sys.modules["pytest"]


def from_tests(name: str) -> Any:
    """A module of the tests, which hold the checks of bits and the table of cases."""
    for folder in map(str, (ROOT / "tests", ROOT / "tests" / "tools")):
        if folder not in sys.path:
            sys.path.append(folder)
    return importlib.import_module(name)
