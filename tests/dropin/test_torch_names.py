"""Every module and name of torch.optim under the name of this package, also those that a later torch may have."""

from __future__ import annotations

import importlib
import os
import pickle
import pkgutil
import sys
from pathlib import Path

import fresh
import pytest
import torch
from helpers import OF_TORCH, make_params, run_python

import fusedoptim

OURS = {name.lower(): name for name in OF_TORCH}
MODULES = [module.name for module in pkgutil.iter_modules(torch.optim.__path__)]
SCRIPT = """
import torch.optim as optim
import torch.optim.swa_utils
import torch.optim.lr_scheduler as schedulers
from torch.optim import nadam, swa_utils
from torch.optim.adam import Adam, adam
from torch.optim.adamw import AdamW, adamw
from torch.optim.sgd import SGD, sgd, _single_tensor_sgd
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.optim.lr_scheduler import *
from torch.optim.asgd import *
assert swa_utils is torch.optim.swa_utils and SequentialLR is schedulers.SequentialLR is optim.lr_scheduler.SequentialLR
assert nadam.NAdam is optim.NAdam and ASGD is optim.ASGD
for name in ("Adam", "AdamW", "SGD"):
    assert globals()[name] is getattr(optim, name)
    print(globals()[name].__module__)
print(adam.__module__, adamw.__module__, sgd.__module__, _single_tensor_sgd.__module__, Optimizer.__module__)
"""


@pytest.mark.parametrize("name", MODULES)
def test_module(name: str) -> None:
    ours, theirs = (importlib.import_module(f"{package}.{name}") for package in ("fusedoptim", "torch.optim"))
    assert vars(fusedoptim)[name] is (ours if name in OURS else vars(torch.optim).get(name, theirs))
    if name not in OURS:
        assert ours is theirs
        assert theirs.__spec__.name == theirs.__name__ == f"torch.optim.{name}"
        return
    for attribute in {*vars(theirs), *theirs.__all__} - vars(ours).keys():
        assert getattr(ours, attribute) is getattr(theirs, attribute)
    cls = getattr(fusedoptim, OURS[name])
    assert getattr(ours, OURS[name]) is cls is not getattr(torch.optim, OURS[name])
    assert cls.__module__ == f"fusedoptim.{name}"


def test_a_script_with_torch_optim_replaced_throughout() -> None:
    functions = "torch.optim.adam torch.optim.adamw torch.optim.sgd torch.optim.sgd torch.optim.optimizer\n"
    for package in ("torch.optim", "fusedoptim"):
        classes = "".join(f"{package}.{name}\n" for name in ("adam", "adamw", "sgd"))
        assert run_python("import torch" + SCRIPT.replace("torch.optim", package)) == classes + functions


def test_a_later_torch(tmp_path: Path) -> None:
    """Names that it adds, modules, and modules within packages, found when they are asked for and loaded once."""
    (tmp_path / "later").mkdir()
    for name in ("newer.py", "later/__init__.py", "later/part.py"):
        (tmp_path / name).touch()
    code = f"""
import torch, fusedoptim
torch.optim.__path__.append({str(tmp_path)!r})
torch.optim.Newer = torch.optim.Adagrad
assert fusedoptim.Newer is torch.optim.Adagrad
import sys, fusedoptim.newer, fusedoptim.later.part
for name in ("newer", "later", "later.part"):
    assert sys.modules["fusedoptim." + name] is sys.modules["torch.optim." + name], name
"""
    assert run_python(code) == ""


def test_what_torch_has_not() -> None:
    for text, error, message in [
        ("import fusedoptim.missing", ModuleNotFoundError, "No module named 'fusedoptim.missing'"),
        ("import fusedoptim.lr_scheduler.missing", ModuleNotFoundError, "'fusedoptim.lr_scheduler' is not a package"),
        ("from fusedoptim import missing", ImportError, "cannot import name 'missing' from 'fusedoptim'"),
        ("from fusedoptim.adam import missing", ImportError, "cannot import name 'missing' from 'fusedoptim.adam'"),
        ("fusedoptim.missing", AttributeError, "module 'fusedoptim' has no attribute 'missing'"),
    ]:
        with pytest.raises(error, match=message):
            exec(text, {"fusedoptim": fusedoptim})


def test_changes_of_torchs_module_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.optim.lr_scheduler.StepLR", int)
    monkeypatch.setattr(importlib.import_module("torch.optim.adam"), "_single_tensor_adam", len)
    assert importlib.import_module("fusedoptim.lr_scheduler").StepLR is int
    assert importlib.import_module("fusedoptim.adam")._single_tensor_adam is len


def test_pickles_name_modules() -> None:
    for cls in (getattr(fusedoptim, name) for name in OF_TORCH):
        assert type(pickle.loads(pickle.dumps(cls(make_params(), lr=0.1)))) is cls
    theirs = pickle.dumps((torch.optim.AdamW, torch.optim.lr_scheduler.StepLR, torch.optim.Adafactor), protocol=0)
    ours = pickle.loads(theirs.replace(b"torch.optim.", b"fusedoptim."))
    assert ours == (fusedoptim.AdamW, torch.optim.lr_scheduler.StepLR, torch.optim.Adafactor)


def test_reloaded() -> None:
    finders = list(sys.meta_path)
    assert importlib.reload(fusedoptim) is fusedoptim
    assert sys.meta_path == finders
    code = """
import importlib, fusedoptim.swa_utils as ours
assert importlib.reload(ours) is ours is importlib.import_module("torch.optim.swa_utils")
"""
    assert run_python(code) == ""


def test_run_as_a_program() -> None:
    for module in ("fusedoptim.lr_scheduler", "fusedoptim.nadam", "fusedoptim.sgd"):
        run_module = f"import runpy; runpy.run_module({module!r}, run_name='__main__')"
        done = fresh.run(run_module, dict(os.environ), 60)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
