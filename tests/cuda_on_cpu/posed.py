"""A pytest plugin: the extension runs on the stand-in for CUDA, and tensors pose as CUDA tensors.

``FUSEDOPTIM_STAND_IN`` names the module that ``stand_in_module.py`` links. With the plugin (``-p posed``) every tensor
of one dimension or more lies on device 0, as far as the extension can see, and torch goes on seeing it on the CPU. So
tests of the CPU kernels become tests of the CUDA kernels: their steps go through tables and launches, and are compared
with the reference as ever.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

HOST = -1
# Tensors pose where the extension asks torch for them. A direct step does not ask.
os.environ["FUSEDOPTIM_DIRECT"] = "0"
_PATH = os.environ["FUSEDOPTIM_STAND_IN"]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.c_char_p),
        ("device", ctypes.c_int32),
        ("stream", ctypes.c_uint64),
        ("blocks", ctypes.c_uint32),
        ("threads", ctypes.c_uint32),
    ]


def _load() -> ctypes.CDLL:
    lib = ctypes.CDLL(_PATH)
    lib.posing_table.restype, lib.posing_table.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    for name in ("posing_place", "posing_forget", "posing_device"):
        getattr(lib, name).argtypes = [ctypes.c_void_p, ctypes.c_int][: 1 if name == "posing_forget" else 2]
    lib.posing_set_stream.argtypes = [ctypes.c_int, ctypes.c_uint64]
    lib.stand_in_new_stream.restype = ctypes.c_uint64
    lib.stand_in_launch.restype = _Launch
    lib.stand_in_set_order.argtypes = lib.stand_in_begin_capture.argtypes = [ctypes.c_uint64]
    lib.stand_in_end_capture.argtypes = [ctypes.c_uint64]
    for name in ("stand_in_fault", "stand_in_kernel_never_launched"):
        getattr(lib, name).restype = ctypes.c_char_p
    return lib


def _pose() -> None:
    """Put the posing table in the place of torch's, where the extension looks for it."""
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    api.PyCapsule_New.restype = ctypes.py_object
    api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    capsule = torch.Tensor.__dlpack_c_exchange_api__
    name = api.PyCapsule_GetName(capsule)
    table = lib.posing_table(api.PyCapsule_GetPointer(capsule, name))
    torch.Tensor.__dlpack_c_exchange_api__ = api.PyCapsule_New(table, name, None)


def _import() -> None:
    spec = importlib.util.spec_from_file_location("fusedoptim._C", _PATH)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sets = module.supported()[:1]  # the CPU kernels have their own tests: here one set of them is enough
    module.built = module.supported = lambda: sets
    sys.modules["fusedoptim._C"] = module


lib = _load()
_pose()
_import()

from fusedoptim.reference import RULES  # noqa: E402
from fusedoptim.step import FusedStep  # noqa: E402 - it must find the module that was linked anew


def place(x: Tensor, device: int) -> Tensor:
    """Let a tensor lie on a device as long as it lives; ``HOST`` for the host."""
    lib.posing_place(id(x), device)
    weakref.finalize(x, lib.posing_forget, id(x)).atexit = False
    return x


def device_of(x: Tensor) -> int:
    """Where a tensor lies."""
    return int(lib.posing_device(id(x), x.dim()))


_original_new_state = FusedStep._new_state


def _new_state(self: FusedStep, param: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    """The new state, where torch's devices would be: on the parameter's, but for numbers that stay on the host."""
    state = _original_new_state(self, param, group)
    for name, x in state.items():
        on_host = name in RULES[self._rule].scalars and not (group.get("fused") or group.get("capturable"))
        place(x, HOST if on_host else device_of(param))
    return state


FusedStep._new_state = _new_state  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def _fresh_stand_in() -> Iterator[None]:
    """Each test begins with nothing queued, recorded or planned, and ends without a fault in a kernel."""
    lib.stand_in_set_eager(1)
    lib.stand_in_reset()
    lib.posing_set_default(0)
    for device in (0, 1):
        lib.posing_set_stream(device, 0)
    yield
    fault = lib.stand_in_fault().decode()
    lib.stand_in_reset()
    assert not fault, fault


def never_launched() -> list[str]:
    """The mangled names of the kernels that no launch in this process has named."""
    return [name.decode() for name in iter(_names(), None)]


def _names() -> Any:
    numbers = iter(range(10_000))
    return lambda: lib.stand_in_kernel_never_launched(next(numbers))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say which kernels ran."""
    missed = never_launched()
    terminalreporter.write_line(f"kernels never launched: {len(missed)}")
    for name in missed[:5]:
        terminalreporter.write_line(f"  {name}")
