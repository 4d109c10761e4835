"""What a bare machine may lack, and what stands in for it: no part is lost for want of a package it hardly uses."""

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent.parent
RICH = ("box", "console", "markup", "progress", "table")
# Imported by modules of which we call nothing that uses them: marks of tests, handwritten digits, charts.
UNUSED = {"pytest": (), "sklearn": ("datasets",), "matplotlib": ("axes", "pyplot")}


def lacking(names: Iterable[str]) -> list[str]:
    """Those of some top-level modules that are not installed."""
    return [name for name in names if name not in sys.modules and importlib.util.find_spec(name) is None]


def missing() -> list[str]:
    """What is not installed, and hardly needed."""
    return lacking((*UNUSED, "rich"))


@contextmanager
def stand_ins() -> Iterator[None]:
    """Within it, imports of what is missing succeed; afterwards all but `rich` is missing again, as torch looks too."""
    absent = lacking(UNUSED)
    stubs = [name for top in absent for name in (top, *(f"{top}.{part}" for part in UNUSED[top]))]
    sys.modules.update({name: mock.MagicMock() for name in stubs})
    if lacking(("rich",)):  # pip carries a copy of its own
        sys.modules["rich"] = importlib.import_module("pip._vendor.rich")
        for part in RICH:
            sys.modules[f"rich.{part}"] = importlib.import_module(f"pip._vendor.rich.{part}")
    try:
        yield
    finally:
        for name in stubs:
            del sys.modules[name]


def from_tests(name: str) -> Any:
    """A module of the tests' tools: they hold the table of cases, and how tensors are compared."""
    folder = str(ROOT / "tests")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)
