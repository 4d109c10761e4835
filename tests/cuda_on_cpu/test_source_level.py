"""The CUDA kernels, compiled for the host, do what the CPU kernels do, and the sanitizers find nothing."""

from __future__ import annotations

from pathlib import Path

import building
import pytest

WHY_NOT = building.why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

ASCENDING, DESCENDING, SHUFFLED = 0, 1, 2


@pytest.fixture(scope="module", params=["address", "thread"])
def watched(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A sanitizer and the program whose kernels it watches."""
    return request.param, building.source_level(request.param)


@pytest.mark.parametrize("order", [ASCENDING, DESCENDING, SHUFFLED])
def test_kernels_do_what_the_cpu_driver_does(watched, order):
    sanitizer, program = watched
    done = building.run_source_level(program, sanitizer, "--seed", str(order))
    assert done.returncode == 0, done.stdout[:6000]
    assert "all correct" in done.stdout
