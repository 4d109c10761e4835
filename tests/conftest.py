"""Fixtures of all tests."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from progress import Progress

import fusedoptim
from fusedoptim import native
from fusedoptim.step import FusedStep

# Whole files go to the processes of a run in this order, so what takes longest begins first.
_FIRST = [Path(__file__).parent / folder for folder in ("cuda_on_cpu", "packaging", "multiprocess")]
_AT_START = fusedoptim.build_info()["instruction_set"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sample", type=int, default=1, metavar="N", help="of each test's cases the first and every Nth")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.getplugin("terminalreporter")
    if terminal is not None and not hasattr(config, "workerinput") and not terminal.isatty:
        config.pluginmanager.register(Progress(lambda line: terminal.write_line(f"\n{line}")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    turns = {path: [not path.is_relative_to(folder) for folder in _FIRST] for path in {item.path for item in items}}
    items.sort(key=lambda item: turns[item.path])
    every = config.getoption("--sample")
    if every > 1:
        cases: Counter[str] = Counter()
        kept, left_out = list[pytest.Item](), list[pytest.Item]()
        for item in items:
            test = item.nodeid.partition("[")[0]
            (left_out if cases[test] % every else kept).append(item)
            cases[test] += 1
        items[:] = kept
        config.hook.pytest_deselected(items=left_out)


def pytest_collection_finish() -> None:
    """The collector no longer goes through the twenty thousand tests, each time that one of them makes garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _restore_globals() -> Iterator[None]:
    """No test changes the number of threads, the backend or the instruction set for those after it."""
    threads, backend = torch.get_num_threads(), fusedoptim.get_backend()
    yield
    torch.set_num_threads(threads)
    if fusedoptim.get_backend() != backend:
        fusedoptim.set_backend("auto" if backend == "native" else backend)
    native.set_instruction_set(_AT_START)


@pytest.fixture
def one_thread() -> None:
    """Many small operations are slower with threads on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture
def kernels_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parameter that is left to torch's own implementation fails the test."""

    def refuse(self: Any, params: Any, *_: Any) -> None:
        pytest.fail(f"left to torch: {[[tuple(p.shape) for p in group] for group in params]}")

    monkeypatch.setattr(FusedStep, "_torch_step", refuse)


@pytest.fixture
def switching() -> Iterator[None]:
    """Python changes threads as often as it can, so that they also meet in the middle of a step."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)
