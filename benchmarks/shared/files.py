"""Where results lie, and how a record of them is read and written: imports nothing that a bare machine may lack."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import ROOT

RESULTS = ROOT / "benchmarks" / "results"
QUICK_RESULTS = ROOT / "build" / "bench"  # which git ignores: the results of a quick run are not published
Record = Mapping[str, Any]  # of results, as JSON has it


def load_json(path: Path) -> dict[str, Any]:
    """A record, empty if there is none."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def save_json(path: Path, record: Record) -> None:
    """Writes a record, creating the folder if need be; whole or not at all, so that a process that dies leaves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(record, indent=1) + "\n")
    new.replace(path)
