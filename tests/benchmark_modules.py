"""The modules of the benchmarks, for the tests of what they make of their measurements."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def load(*names: str, needs: tuple[str, ...] = ("rich",)) -> list[ModuleType]:
    """The modules of these names; where one of the packages that they need is missing, the test file is skipped."""
    for package in needs:
        pytest.importorskip(package, reason="the benchmarks need it")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(BENCHMARKS))
