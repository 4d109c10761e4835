"""A short run of ``boundary.py`` with fixed seeds, and what long runs have found, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import fresh
import pytest

from fusedoptim import native

FUZZ = Path(__file__).with_name("boundary.py")
PREPARE = """
import torch
import fusedoptim._C as _C

big = 1 << 20
p = torch.nn.Parameter(torch.ones(big))
p.grad = torch.ones(big)
state = {p: {"momentum_buffer": torch.ones(big)}}
group = {"params": [p], "lr": 0.1, "momentum": 0.9, "dampening": 0, "nesterov": False, "weight_decay": 0, "fused": True}
group["maximize"] = False
executor, kernels = _C.StepExecutor("sgd"), _C.supported()[0]


class Scale:
    def __float__(self):
        meddle()
        return 2.0


def apply(scale):
    return executor.apply(state, kernels, 1, True, scale, None)


def refused(call, *args):
    try:
        call(*args)
    except (RuntimeError, TypeError) as error:
        return str(error)
    raise AssertionError("not refused")
"""
pytestmark = pytest.mark.skipif(not native.available(), reason="the compiled module is missing")


def run_alone(code: str) -> subprocess.CompletedProcess[str]:
    return fresh.run(f"import warnings\nwarnings.simplefilter('ignore')\n{code}", dict(os.environ), 600)


def run_program(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(program), *arguments]
    code = f"sys.argv = {command}\nsys.path[0] = {str(program.parent)!r}"
    return run_alone(f"import runpy, sys\n{code}\nrunpy.run_path({command[0]!r}, run_name='__main__')")


@pytest.mark.parametrize("seed", [0, 10_000, 20_000])
def test_malformed_arguments(seed: int, tmp_path: Path) -> None:
    log = tmp_path / "seed"
    done = run_program(FUZZ, "--cases", "500", "--seed", str(seed), "--log", str(log))
    at = log.read_text() if log.exists() else "none"
    assert done.returncode == 0, f"ended with {done.returncode} in case {at}:\n{done.stdout}{done.stderr}"
    assert f"500 cases from seed {seed}" in done.stdout


@pytest.mark.parametrize(
    "meddling",
    [
        "p.untyped_storage().resize_(0)",
        "p.grad.untyped_storage().resize_(0)",
        'state[p]["momentum_buffer"].untyped_storage().resize_(0)',
        "p.data = torch.ones(big)",
    ],
)
def test_memory_exchanged_while_the_scale_is_read(meddling: str) -> None:
    """Nothing is written, and the apply that failed is not repeated with what was seen before."""
    done = run_alone(
        f"""{PREPARE}
def meddle():
    {meddling}

executor.prepare([group], state, None, True)
assert apply(Scale()) is False
assert "follows a prepare()" in refused(apply, None)
""",
    )
    assert done.returncode == 0, done.stderr


def test_errors_do_not_print_tensors_without_memory() -> None:
    """Torch's repr ends the process there."""
    done = run_alone(
        f"""{PREPARE}
p.untyped_storage().resize_(0)
for wrong in (None, 3):
    assert "groups must be a list of dicts" in refused(executor.prepare, wrong, state, None, False)
    assert "groups must be a list of dicts" in refused(executor.zero_grads, wrong, 1)
    assert "state must be a dict" in refused(executor.prepare, [group], wrong, None, False)
    executor.prepare([{{**group, "params": []}}], state, None, False)
    assert "state must be a dict" in refused(executor.apply, wrong, kernels, 1, False, state, None)
    assert "instruction_set must be" in refused(executor.apply, state, wrong, 1, False, None, None)
assert "got a tensor of shape (1048576,)" in refused(executor.prepare, [{{**group, "lr": p}}], state, None, False)
""",
    )
    assert done.returncode == 0, done.stderr
