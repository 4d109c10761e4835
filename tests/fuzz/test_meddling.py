"""A short run of ``meddling.py`` with fixed seeds, and what long runs have found, each in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_boundary import run_alone, run_program

from fusedoptim import native

FUZZ = Path(__file__).with_name("meddling.py")
pytestmark = pytest.mark.skipif(not native.available(), reason="the compiled module is missing")


@pytest.mark.parametrize("seed", [0, 10_000])
def test_meddling(seed: int, tmp_path: Path) -> None:
    log = tmp_path / "seed"
    done = run_program(FUZZ, "--cases", "60", "--seed", str(seed), "--log", str(log))
    at = log.read_text() if log.exists() else "none"
    assert done.returncode == 0, f"ended with {done.returncode} in case {at}:\n{done.stdout}{done.stderr}"
    assert f"60 cases from seed {seed}" in done.stdout


@pytest.mark.parametrize("elements", [50, 5000])
def test_state_that_a_mode_takes_away(elements: int) -> None:
    """The mode runs where torch's getter is asked for gradients, after what the step will write to was looked up."""
    done = run_alone(
        f"""
import torch
from torch.overrides import TorchFunctionMode
import fusedoptim

params = [torch.nn.Parameter(torch.zeros({elements})) for _ in range(50)]
optimizer = fusedoptim.Adam(params)
for p in params:
    p.grad = torch.ones({elements})
optimizer.step()


class Mode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        optimizer.state.clear()
        return func(*args, **(kwargs or {{}}))


with Mode():
    try:
        optimizer.step()
    except (KeyError, RuntimeError):
        pass
optimizer.step()
""",
    )
    assert done.returncode == 0, done.stderr
