"""Builds the native module with CMake and Ninja; everything else is in pyproject.toml.

The native code needs no torch to build, so `pip install .` works under build isolation. On a machine
without a C++ compiler the package installs all the same and runs on its pure-Python reference path.

Environment:
    FUSEDOPTIM_NATIVE: ``auto`` (default) builds the native module where a compiler is found, ``1`` makes a
        failed build an error, ``0`` skips it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Runs CMake once for the whole native part."""

    def run(self) -> None:
        """Build, or say in one line why the package goes on without the native module."""
        wanted = os.environ.get("FUSEDOPTIM_NATIVE", "auto")
        if wanted not in {"auto", "0", "1"}:
            raise SystemExit(f"FUSEDOPTIM_NATIVE must be auto, 0 or 1, got {wanted!r}")
        if wanted == "0":
            self._without_native("FUSEDOPTIM_NATIVE=0")
            return
        try:
            super().run()
        except (OSError, subprocess.CalledProcessError) as error:
            if wanted == "1":
                raise SystemExit(f"fusedoptim: the native module could not be built: {error}") from None
            self._without_native(
                f"the native module could not be built ({error}); install a C++17 compiler (g++ or clang++) and "
                "install fusedoptim again to get the fast path"
            )

    def _without_native(self, reason: str) -> None:
        self.extensions = []
        print(f"fusedoptim: installing the pure-Python reference path only: {reason}", file=sys.stderr)

    def build_extension(self, ext: Extension) -> None:
        """Configure, build and copy ``fusedoptim/_C`` into the place where setuptools expects it."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        version = self.distribution.get_version()
        subprocess.run(
            [
                "cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release",
                f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}", f"-DFUSEDOPTIM_VERSION={version}",
                f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            ],
            check=True,
        )  # fmt: skip
        subprocess.run(["cmake", "--build", str(build)], check=True)


setup(ext_modules=[Extension("fusedoptim._C", [])], cmdclass={"build_ext": CMakeBuild})
