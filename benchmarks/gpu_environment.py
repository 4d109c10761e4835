"""What a bare machine may lack, and what stands in for it: no part is lost for want of a package it hardly uses."""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
RICH = ("box", "console", "progress", "table")
# Imported by modules of which we call nothing that uses them: marks of tests, handwritten digits, charts.
UNUSED = {"pytest": (), "sklearn": ("datasets",), "matplotlib": ("axes", "pyplot")}


def lacks(name: str) -> bool:
    """Whether a top-level module can neither be imported nor stands there already."""
    return name not in sys.modules and importlib.util.find_spec(name) is None


def stand_in() -> list[str]:
    """Lets every import of this benchmark succeed that can; returns the names of what is missing."""
    missing = []
    for name, parts in UNUSED.items():
        if lacks(name):
            missing.append(name)
            for module in (name, *(f"{name}.{part}" for part in parts)):
                sys.modules[module] = mock.MagicMock()
    if lacks("rich"):  # pip carries a copy of its own
        missing.append("rich")
        sys.modules["rich"] = importlib.import_module("pip._vendor.rich")
        for part in RICH:
            sys.modules[f"rich.{part}"] = importlib.import_module(f"pip._vendor.rich.{part}")
    return missing


def from_tests(name: str) -> Any:
    """A module of the tests' tools: they hold the table of cases, and how tensors are compared."""
    folder = str(ROOT / "tests")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)
