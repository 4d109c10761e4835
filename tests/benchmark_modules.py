"""The modules of the benchmarks, for the tests of what they make of their measurements."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

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


def section_written(main: Callable[[Sequence[str]], Any], section: str, folder: Path, *arguments: str) -> str:
    """The page into which ``main`` has written a section, and nothing else."""
    page = folder / "page.md"
    page.write_text(f"before\n<!-- {section}: begin -->\n<!-- {section}: end -->\nafter\n")
    main([*arguments, "--into", str(page)])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    return text
