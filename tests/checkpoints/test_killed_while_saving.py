"""The pattern of docs/checkpoints.md: a process that is killed while it saves leaves a checkpoint that loads."""

from __future__ import annotations

import builtins
import doctest
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_params, set_grads

import fusedoptim

PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"
SHAPES = [(64, 33), (7,)]

pytestmark = pytest.mark.usefixtures("one_thread")


def documented() -> dict[str, Any]:
    """The names of the page's function ``save``, among them itself."""
    names: dict[str, Any] = {"torch": torch, "os": os}
    (example,) = [x.source for x in doctest.DocTestParser().get_examples(PAGE.read_text()) if "def save(" in x.source]
    exec(example, names)
    return names


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KillingFile:
    """A file that kills its process in the middle of the third write."""

    def __init__(self, path: str, mode: str) -> None:
        self._file = builtins.open(path, mode, buffering=0)  # noqa: SIM115
        self._writes = 0

    def __enter__(self) -> KillingFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> int:
        self._writes += 1
        if self._writes == 3:
            self._file.write(bytes(data)[: len(data) // 2])
            kill()
        return self._file.write(data)


class Os:
    """The module os, but for one function before or after which the process is killed."""

    def __init__(self, name: str, after: bool) -> None:
        self._name, self._after = name, after

    def __getattr__(self, name: str) -> Any:
        def killing(*args: Any) -> None:
            getattr(os, name)(*args) if self._after else None
            kill()

        return killing if name == self._name else getattr(os, name)


MOMENTS: dict[str, tuple[dict[str, Any], int]] = {  # what is replaced, and which checkpoint is there afterwards
    "while writing": ({"open": KillingFile}, 1),
    "before fsync": ({"os": Os("fsync", after=False)}, 1),
    "before replace": ({"os": Os("replace", after=False)}, 1),
    "after replace": ({"os": Os("replace", after=True)}, 2),
}


def child(work: Callable[[], None]) -> int:
    """Fork, work, and return the id of the process."""
    pid = os.fork()
    if pid == 0:
        try:
            torch.set_num_threads(1)
            work()
        finally:
            os._exit(1)
    return pid


def trained(steps: int) -> Any:
    optimizer = fusedoptim.Adam(make_params(SHAPES))
    for seed in range(steps):
        set_grads(optimizer, seed)
        optimizer.step()
    return optimizer


def loaded(path: str) -> Any:
    optimizer = fusedoptim.Adam(make_params(SHAPES))
    optimizer.load_state_dict(torch.load(path, weights_only=True))
    return optimizer


@pytest.mark.parametrize(("replaced", "found"), MOMENTS.values(), ids=MOMENTS)
def test_killed_at_every_moment(replaced: dict[str, Any], found: int, tmp_path: Path) -> None:
    path = str(tmp_path / "checkpoint.pt")
    save = documented()["save"]
    save(trained(1).state_dict(), path)
    newer = trained(2).state_dict()

    def work() -> None:
        names = documented()
        names.update(replaced)
        names["save"](newer, path)

    pid = child(work)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert {float(state["step"]) for state in loaded(path).state.values()} == {float(found)}
    save(newer, path)  # what was left of the other does no harm
    assert {float(state["step"]) for state in loaded(path).state.values()} == {2.0}
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_killed_at_some_moment(tmp_path: Path) -> None:
    """A process that saves without a pause, killed from outside."""
    path = str(tmp_path / "checkpoint.pt")
    save = documented()["save"]

    def work() -> None:
        optimizer = trained(0)
        for seed in range(100_000):
            set_grads(optimizer, seed)
            optimizer.step()
            save(optimizer.state_dict(), path)

    last = 0.0
    for milliseconds in (1, 3, 8, 17):
        save(trained(1).state_dict(), path)
        begun = os.stat(path).st_ino
        pid = child(work)
        deadline = time.monotonic() + 60
        while os.stat(path).st_ino == begun and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(milliseconds / 1000)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        steps = {float(state["step"]) for state in loaded(path).state.values()}
        assert len(steps) == 1  # all of one moment
        last = max(last, *steps)
    assert last >= 1


def test_a_plain_save_would_not_survive(tmp_path: Path) -> None:
    """So the tests above can fail."""
    path = str(tmp_path / "checkpoint.pt")
    torch.save(trained(1).state_dict(), path)
    newer = trained(2).state_dict()

    def work() -> None:
        with KillingFile(path, "wb") as file:
            torch.save(newer, file)

    pid = child(work)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    with pytest.raises((RuntimeError, EOFError)):
        loaded(path)
