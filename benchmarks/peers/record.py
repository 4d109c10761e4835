"""The file of results of `peers.py`, of which each run replaces what it has measured anew."""

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.peers.list import PACKAGES
from benchmarks.shared.report import save_json
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import RULES


def versions() -> dict[str, str]:
    """The packages that are installed, with their versions."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def remember_compiling(new: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    """Puts the first step that had to compile in place of one that found what that had left in the cache."""
    for name, figures in new["variants"].items():
        before = old["variants"].get(name, {"from_cache": True})
        if figures["from_cache"] and not before["from_cache"]:
            figures |= {"first_step_s": before["first_step_s"], "from_cache": False}


def keep(path: Path, entry: Mapping[str, Any], machine: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Puts a result into the file, in place of one of the same model and optimizer."""
    record = json.loads(path.read_text()) if path.exists() else {"results": [], "setup": {}}
    about = {"machine": machine, "settings": settings, "versions": versions()}
    if "model" in entry:
        case = entry["model"], entry["optimizer"]
        others = [old for old in record["results"] if (old["model"], old["optimizer"]) != case]
        for old in record["results"]:
            if old not in others:
                remember_compiling(entry, old)
        order = list(product(RULES, MODELS))
        record["results"] = sorted(
            [*others, {**about, **entry}], key=lambda one: order.index((one["optimizer"], one["model"]))
        )
    else:
        record["setup"] |= {name: {**about, **figures} for name, figures in entry.items()}
    save_json(path, record)
