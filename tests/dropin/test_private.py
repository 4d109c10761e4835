"""A torch that lacks a private name which this package uses costs that feature, and not the import."""

from __future__ import annotations

from helpers import run_python
from torch.optim import Optimizer

from fusedoptim.torch_internals.private import private

# Whatever is looked up during the import, no torch has it.
CODE = """
import importlib, sys, types
import torch
usual = importlib.import_module
def look_up(name, package=None):
    if sys._getframe(1).f_globals["__name__"] != "fusedoptim.torch_internals.private":
        return usual(name, package)
    {instead}
importlib.import_module = look_up
import fusedoptim
for backend in ("auto", "reference"):
    with fusedoptim.set_backend(backend):
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = fusedoptim.SGD([weight], lr=0.5)
        weight.grad = torch.ones(3)
        for _ in range(2):
            optimizer.step()
        optimizer.zero_grad()
        optimizer.load_state_dict(optimizer.state_dict())
        print(weight.tolist(), weight.grad)
"""


def test_a_name_that_torch_has() -> None:
    assert private("torch.optim.Optimizer", None) is Optimizer


def test_all_names_missing() -> None:
    expected = "[0.0, 0.0, 0.0] None\n" * 2
    assert run_python(CODE.format(instead="return types.SimpleNamespace()")) == expected
    assert run_python(CODE.format(instead="raise ImportError(name)")) == expected
