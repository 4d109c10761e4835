"""Choosing the implementation and the instruction set, and what happens where the compiled module is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import make_params, need_kernels, run_python, set_grads

import fusedoptim
from fusedoptim import native

STEP = """
import torch, fusedoptim
p = torch.nn.Parameter(torch.ones(3)); p.grad = torch.ones(3)
"""
BLOCKED = f"""
import sys, warnings
sys.modules["fusedoptim._C"] = None
warnings.simplefilter("always")
{STEP}
"""


def test_chosen_for_good_for_a_block_and_within_blocks() -> None:
    fusedoptim.set_backend("reference")
    assert fusedoptim.get_backend() == "reference"
    fusedoptim.set_backend("auto")
    usual = fusedoptim.get_backend()
    assert usual == ("native" if native.available() else "reference")
    with fusedoptim.set_backend("reference"):
        with fusedoptim.set_backend("auto"):
            assert fusedoptim.get_backend() == usual
        assert fusedoptim.get_backend() == "reference"
    assert fusedoptim.get_backend() == usual


def _raise_in_block() -> None:
    with fusedoptim.set_backend("reference"):
        raise ZeroDivisionError


def test_restored_after_an_error() -> None:
    usual = fusedoptim.get_backend()
    with pytest.raises(ZeroDivisionError):
        _raise_in_block()
    assert fusedoptim.get_backend() == usual


@pytest.mark.parametrize("name", ["cuda", "", None, "Native"])
def test_unknown_name(name: str) -> None:
    usual = fusedoptim.get_backend()
    with pytest.raises(ValueError, match="backend must be one of auto, native, reference"):
        fusedoptim.set_backend(name)
    assert fusedoptim.get_backend() == usual


@need_kernels
@pytest.mark.parametrize("name", ["reference", "native", "auto"])
def test_the_chosen_implementation_takes_the_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fusedoptim.reference.executor import ReferenceExecutor

    calls = []
    prepare = ReferenceExecutor.prepare
    monkeypatch.setattr(ReferenceExecutor, "prepare", lambda *args: [calls.append(1), prepare(*args)][1])
    optimizer = fusedoptim.SGD(make_params())
    with fusedoptim.set_backend(name):
        set_grads(optimizer, 1)
        optimizer.step()
    assert bool(calls) is (name == "reference")


def test_environment() -> None:
    show = f"{STEP}print(fusedoptim.get_backend())"
    assert run_python(show, FUSEDOPTIM_BACKEND="reference") == "reference\n"
    assert "backend must be one of" in run_python(show, FUSEDOPTIM_BACKEND="gpu")


@need_kernels
def test_instruction_set_from_the_environment() -> None:
    show = f"{STEP}print(fusedoptim.build_info()['instruction_set'])"
    for name in ("", *fusedoptim.build_info()["instruction_sets_supported"]):
        wanted = name or fusedoptim.build_info()["instruction_sets_supported"][0]
        assert run_python(show, FUSEDOPTIM_ISA=name) == f"{wanted}\n"
    error = run_python(show, FUSEDOPTIM_ISA="mmx").splitlines()[-1]
    assert "FUSEDOPTIM_ISA=mmx" in error
    assert "baseline" in error


@need_kernels
def test_instruction_set_that_the_processor_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    supported = native._C.supported()
    monkeypatch.setattr(native, "_C", _Without(supported[-1:]))
    with pytest.raises(RuntimeError, match=r"this processor does not support it; usable here: baseline"):
        native.set_instruction_set(fusedoptim.build_info()["instruction_sets_built"][0])


class _Without:
    """The compiled module on a lesser processor."""

    def __init__(self, supported: list[object]) -> None:
        self._supported = supported
        self.built = native._C.built

    def supported(self) -> list[object]:
        return self._supported


def test_build_info() -> None:
    info = fusedoptim.build_info()
    assert info["native"] is native.available()
    assert set(info) >= {
        "version",
        "torch",
        "python",
        "platform",
        "native_error",
        "compiler",
        "openmp",
        "threads",
        "cuda",
    }
    if native.available():
        assert info["instruction_set"] in info["instruction_sets_supported"]
        assert set(info["instruction_sets_supported"]) <= set(info["instruction_sets_built"])
        assert "baseline" in info["instruction_sets_supported"]


def test_python_m_fusedoptim() -> None:
    shown = run_python("import runpy; runpy.run_module('fusedoptim', run_name='__main__')")
    assert fusedoptim.build_info()["version"] in shown
    assert str(Path(fusedoptim.__file__).resolve().parent) in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("in_source", [True, False], ids=["source folder", "elsewhere"])
def test_a_missing_module_in_the_source_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_source: bool
) -> None:
    """Who starts Python in a clone meets the sources in place of what is installed, and reads so."""
    if in_source:
        (tmp_path / "csrc").mkdir()
    monkeypatch.setattr(native, "_SOURCE", tmp_path)
    said = native.why_missing()
    assert ("start from another folder" in said) == (str(tmp_path) in said) == in_source
    assert "install a C++17 compiler" in said


def test_missing_compiled_module_warns_once_and_works() -> None:
    shown = run_python(f"""{BLOCKED}
with warnings.catch_warnings(record=True) as caught:
    for _ in range(2):
        o = fusedoptim.Adam([p], lr=0.5)
        o.step()
        o.step(zero_grad="to_zero")
        p.grad.fill_(1)
    o.zero_grad()
print(len(caught), caught[0].category.__name__, caught[0].message)
print([round(x, 4) for x in p.tolist()], p.grad, fusedoptim.get_backend(), fusedoptim.build_info()["native"])
""").splitlines()
    assert shown[0].startswith("1 UserWarning fusedoptim runs on its slow reference path")
    assert "fusedoptim._C" in shown[0], "the cause"
    assert "compiler" in shown[0], "the cure"
    assert shown[1] == "[-1.0, -1.0, -1.0] None reference False"


def test_missing_compiled_module_is_an_error_where_the_kernels_are_demanded() -> None:
    shown = run_python(f"""{BLOCKED}
for act in (lambda: fusedoptim.SGD([p], fused=True).step(), lambda: fusedoptim.set_backend("native")):
    try:
        act()
    except RuntimeError as error:
        print(error)
print(p.tolist())
""").splitlines()
    assert shown[0].startswith("fused=True, but the compiled module")
    assert shown[1].startswith("the compiled module")
    assert shown[2] == "[1.0, 1.0, 1.0]"


def test_reference_on_purpose_does_not_warn() -> None:
    shown = run_python(
        f"{BLOCKED}\nfusedoptim.SGD([p], fused=True).step(); print('quiet')", FUSEDOPTIM_BACKEND="reference"
    )
    assert shown == "quiet\n"


def test_a_module_that_is_there_and_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ImportError("initialization failed")
    error.__cause__ = AttributeError("module 'torch' has no attribute 'full'")
    monkeypatch.setattr(native, "load_error", error)
    said = native.why_missing()
    assert "initialization failed: module 'torch' has no attribute 'full'" in said
    assert "compiler" not in said
