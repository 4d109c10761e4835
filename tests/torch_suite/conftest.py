"""Every test of this folder takes its steps on the path of its input, which must be the one that is taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import helpers
import pytest
import torch

import fusedoptim
from fusedoptim import native


@pytest.fixture
def left_to_torch(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """For a test in which torch takes parameters that ours does not: a list that grows whenever it does."""
    return helpers.torch_steps(monkeypatch)


@pytest.fixture(autouse=True)
def _path_of_the_input(request: pytest.FixtureRequest) -> Iterator[None]:
    """The operations are small, and slower with threads."""
    torch.set_num_threads(1)
    callspec = getattr(request.node, "callspec", None)
    each = callspec.params.get("each") if callspec else None
    if each is None or (each.path.backend == "native" and not native.available()):
        yield
        return
    if each.path.is_ours and "left_to_torch" not in request.fixturenames:
        request.getfixturevalue("kernels_only")
    with fusedoptim.set_backend(each.path.backend):
        yield
