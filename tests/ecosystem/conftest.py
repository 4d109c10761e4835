"""These tests need the libraries of requirements-ecosystem.txt: `make test-ecosystem` runs them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fusedoptim
from fusedoptim.step import FusedStep

NEEDED = ("lightning", "transformers", "accelerate")
if not all(importlib.util.find_spec(name) for name in NEEDED):
    collect_ignore_glob = ["test_*.py"]

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

# The libraries warn of one another and of machines without a GPU. What they say of optimizers stays an error.
WARNINGS = pytest.mark.filterwarnings("ignore", "error:(?is).*(optimizer|scheduler)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(WARNINGS)


@pytest.fixture(autouse=True)
def _new_accelerator() -> None:
    """Accelerate, and with it the Trainer of transformers, keeps one state for the process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def steps_of_kernels(kernels_only: None, one_thread: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Our steps are taken by the kernels, all of them whole; a test in which there is none fails.

    The list grows by one at each step.
    """
    steps: list[int] = []
    original = FusedStep._update

    def counting(self: FusedStep, *args: Any, **kwargs: Any) -> Any:
        assert fusedoptim.get_backend() == "native"
        steps.append(len(steps))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(FusedStep, "_update", counting)
    yield steps
    assert steps, "no step was taken by fusedoptim"
