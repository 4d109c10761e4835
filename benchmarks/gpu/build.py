"""Builds the package in place for one GPU, unless the module there has kernels for it; finds CUDA's tools.

And what a bare machine may lack beside them, and what stands in for it: no part is lost for want of a package that it
hardly uses.
"""

import importlib
import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import ROOT

PIP = ("-m", "pip", "install", "--no-build-isolation", "--no-deps", "--editable", ".")
SETUP = ("setup.py", "egg_info", "build_ext", "--inplace")  # what needs nothing but setuptools
FROM_SETUP = "fusedoptim: "  # with which the lines of setup.py begin: then it is no use to try again without pip
RICH = ("rich", *(f"rich.{part}" for part in ("box", "console", "markup", "progress", "table")))
ASK = """
import fusedoptim, json
from fusedoptim import native
found = {"cuda_architectures": list(getattr(native._C, "cuda_architectures", [])), "error": None}
try:
    found |= fusedoptim.build_info()
except Exception as error:
    found["error"] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps(found))
"""
Run = Callable[[Sequence[str], Mapping[str, str]], "subprocess.CompletedProcess[str]"]


def missing() -> list[str]:
    """What is not installed, and hardly needed: marks of tests, and tables in colour."""
    return [name for name in ("pytest", "rich") if name not in sys.modules and importlib.util.find_spec(name) is None]


@contextmanager
def stand_ins() -> Iterator[None]:
    """Within it, imports of what is missing succeed; afterwards all but `rich` is missing again, as torch looks too."""
    absent = missing()
    for part in RICH if "rich" in absent else ():  # pip carries a copy of its own
        sys.modules[part] = importlib.import_module(f"pip._vendor.{part}")
    if "pytest" in absent:
        sys.modules["pytest"] = mock.MagicMock()
    yield
    if "pytest" in absent:
        del sys.modules["pytest"]


def run(command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    to = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env={**os.environ, **environment}, **to)  # type: ignore[call-overload,no-any-return]


def installed(run: Run = run) -> dict[str, Any]:
    """The `build_info` of the repository's package, asked in a fresh interpreter; `error` if there is none."""
    for is_first in (True, False):
        done = run(["-c", ASK], {"PYTHONPATH": str(ROOT)})
        last = (done.stdout.strip().splitlines() or ["no output"])[-1]
        info: dict[str, Any] = {"error": last, "cuda_architectures": []} if done.returncode else json.loads(last)
        if not (is_first and "PackageNotFoundError" in (info["error"] or "")):
            break
        run(["setup.py", "egg_info"], {})  # a package that lies here and is not installed has no version yet
    return info


def serves(architectures: Sequence[str], capability: tuple[int, int]) -> str | None:
    """How a build for `architectures` runs on a GPU: as "machine code", from "PTX", or not at all."""
    by_ptx = False
    for entry in architectures:
        if found := re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry):
            built = int(found[1]), int(found[2])
            if found[3] and built != capability:
                continue
            if not found[4] and built[0] == capability[0] and built[1] <= capability[1]:
                return "machine code"
            by_ptx = by_ptx or (bool(found[4]) and built <= capability)
    return "PTX" if by_ptx else None


def find_nvcc() -> tuple[Path | None, str]:
    """The nvcc that `setup.py` would take, and its version; or None, and why."""
    try:
        spec: Any = importlib.util.spec_from_file_location("fusedoptim_setup", ROOT / "setup.py")
        setup: Any = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = setup
        spec.loader.exec_module(setup)
        toolkit = setup.Toolkit.find()
    except Exception as error:  # no setuptools, or an nvcc that does not work
        return None, str(error)
    if toolkit is None:
        return None, "no nvcc in CUDACXX, CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda* or among Python's packages"
    return toolkit.nvcc, toolkit.version


def lacking() -> list[str]:
    found = {name: importlib.util.find_spec(name) for name in ("setuptools", "pybind11", "cmake", "ninja")}
    tools = [name for name, spec in found.items() if not (spec or (name in ("cmake", "ninja") and shutil.which(name)))]
    return tools if any(map(shutil.which, ("c++", "g++", "clang++"))) else [*tools, "a C++ compiler"]


def build(capability: tuple[int, int], run: Run = run) -> dict[str, Any]:
    """Builds, or says why there is no need or no way; `passed` if the module then runs on the GPU."""
    target = "{}.{}".format(*capability)
    before = installed(run)
    how = None if before["error"] else serves(before["cuda_architectures"], capability)
    report: dict[str, Any] = {"target": target, "nvcc": None, "built": False, "how": how, "passed": how is not None}
    if how == "machine code":
        return {**report, "why": "the module that is here has kernels for it"}
    nvcc, version = find_nvcc()
    tools = lacking()
    if nvcc is None or tools:
        why = f"no nvcc: {version}" if nvcc is None else f"building needs {', '.join(tools)}"
        then = "going on with the PTX of the module here" if how else before["error"] or "no kernels for it here"
        return {**report, "why": f"{why}; {then}"}
    environment = {"FUSEDOPTIM_CUDA": "1", "FUSEDOPTIM_NATIVE": "1", "TORCH_CUDA_ARCH_LIST": target}
    print(f"build: for {target} with nvcc {version}", flush=True)
    # Setuptools must not see pip be looked for: it would leave distutils to Python's own.
    has_pip = importlib.machinery.PathFinder.find_spec("pip") is not None
    for command in (PIP, SETUP) if has_pip else (SETUP,):
        done = run(command, environment)
        lines = done.stdout.strip().splitlines()
        if done.returncode == 0 or FROM_SETUP in done.stdout:
            break
        print(f"build: {command[0]} {command[1]} failed: {(lines or [''])[-1]}", flush=True)
    after = installed(run)
    how = None if after["error"] else serves(after["cuda_architectures"], capability)
    why = after["error"] or ("built" if how else " / ".join(lines[-5:]))
    return {**report, "nvcc": version, "built": True, "how": how, "passed": how is not None, "why": why}


def find_sanitizer() -> Path | None:
    nvcc, _ = find_nvcc()
    folders = [os.environ.get("PATH", ""), *([nvcc.parent, nvcc.parent.parent / "compute-sanitizer"] if nvcc else [])]
    found = shutil.which("compute-sanitizer", path=os.pathsep.join(map(str, folders)))
    return Path(found) if found else None
