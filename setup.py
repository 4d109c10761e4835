"""Builds the native module with CMake and Ninja; everything else is in pyproject.toml.

The native code needs no torch to build, so `pip install .` works under build isolation. On a machine
without a C++ compiler the package installs all the same and runs on its pure-Python reference path.

Environment:
    FUSEDOPTIM_NATIVE: ``auto`` (default) builds the native module where a compiler is found, ``1`` makes a
        failed build an error, ``0`` skips it.
    FUSEDOPTIM_CMAKE_ARGS: More arguments for CMake, such as ``-DFUSEDOPTIM_SANITIZE=address,undefined``.
"""

from __future__ import annotations

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
SLOW = "fusedoptim: installing the pure-Python reference path only, which is slow"


def tool(name: str, folder: str) -> str:
    """The program from the Python package of its name, which says in ``folder`` where it lies; else that on PATH."""
    with suppress(ImportError):
        found = shutil.which(name, path=getattr(importlib.import_module(name), folder))
        if found:
            return found
    return shutil.which(name) or name


def tell(message: str) -> None:
    """Say it in the build log and, since pip shows that log only with -v, on the terminal."""
    print(message, file=sys.stderr)
    if not sys.stderr.isatty():
        with suppress(OSError), open("/dev/tty", "w") as terminal:
            terminal.write(f"\n{message}\n")


class CMakeBuild(build_ext):
    """Runs CMake once for the whole native part."""

    def run(self) -> None:
        """Build, or say in one line why the package goes on without the native module."""
        wanted = os.environ.get("FUSEDOPTIM_NATIVE", "auto")
        if wanted not in {"auto", "0", "1"}:
            raise SystemExit(f"FUSEDOPTIM_NATIVE must be auto, 0 or 1, got {wanted!r}")
        if wanted == "0":
            self.go_without("FUSEDOPTIM_NATIVE=0")
            return
        try:
            super().run()
        except (OSError, subprocess.CalledProcessError, ImportError) as error:
            reason = str(error)
            if isinstance(error, subprocess.CalledProcessError):
                step = "compilation failed" if "--build" in error.cmd else "CMake found no working C++17 compiler"
                reason = f"{step} (pip install -v shows its output)"
            if wanted == "1":
                raise SystemExit(f"fusedoptim: the native module could not be built: {reason}") from None
            self.go_without(f"{reason}; install g++ or clang++, then fusedoptim again with pip's --no-cache-dir")

    def go_without(self, reason: str) -> None:
        """Leave the native module out, one of an earlier build included."""
        self.extensions: list[Extension] = []
        self.distribution.ext_modules = []
        stale = self.get_ext_filename("fusedoptim._C")
        for folder in {Path(self.build_lib), ROOT if self.editable_mode else Path(self.build_lib)}:
            (folder / stale).unlink(missing_ok=True)
        tell(f"{SLOW}: {reason}")

    def build_extension(self, ext: Extension) -> None:
        """Configure, build, and copy the module to where setuptools expects it."""
        import pybind11

        # An editable install keeps its objects, so that the next one compiles only what has changed.
        tag = f"editable-{sys.implementation.cache_tag}"
        build = ROOT / "build" / tag if self.editable_mode else Path(self.build_temp).resolve()
        cmake = tool("cmake", "CMAKE_BIN_DIR")
        configure = [
            cmake, "-G", "Ninja", "-S", str(ROOT), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja', 'BIN_DIR')}", f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DFUSEDOPTIM_VERSION={self.distribution.get_version()}",
            *shlex.split(os.environ.get("FUSEDOPTIM_CMAKE_ARGS", "")),
        ]  # fmt: skip
        # What CMake has cached may be gone (the tools of an isolated build) or changed; then it starts afresh.
        setting = json.dumps([configure, *(os.environ.get(name) for name in ("CXX", "CXXFLAGS", "LDFLAGS"))])
        record = build / "configured_as.json"
        fresh = not record.exists() or record.read_text() != setting
        record.unlink(missing_ok=True)
        subprocess.run([*configure, *(["--fresh"] if fresh else [])], check=True)
        record.write_text(setting)
        subprocess.run([cmake, "--build", str(build)], check=True)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(build / target.name), str(target))


class Wheel(bdist_wheel):
    """Tags the wheel by what was really built: for one Python and platform, or for any."""

    def run(self) -> None:
        """Build from a clean output folder, then pack."""
        shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
        self.run_command("build")
        self.root_is_pure = not self.distribution.ext_modules
        self.skip_build = True
        super().run()


setup(ext_modules=[Extension("fusedoptim._C", [])], cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel})
