"""Builds the native module with CMake and Ninja; everything else is in pyproject.toml.

The native code needs no torch to build, so `pip install .` works under build isolation. On a machine
without a C++ compiler the package installs all the same and runs on its pure-Python reference path. Where there is one,
a build that fails is an error: pip shows nothing else of what a build says, and the reference path is slow.

Environment:
    FUSEDOPTIM_NATIVE: ``auto`` (default) builds the native module where a C++ compiler is found, ``1`` makes it an
        error if there is none, ``0`` skips the module.
    FUSEDOPTIM_CUDA: ``auto`` (default) builds the CUDA kernels where an nvcc is found, ``1`` makes it an error if they
        cannot be built, ``0`` skips them. Where an nvcc is found and fails, ``auto`` goes on without the kernels and
        says so; with ``FUSEDOPTIM_NATIVE=1`` that is an error too.
    CUDACXX, CUDA_HOME, CUDA_PATH: The nvcc, or the toolkit that holds it; see ``nvcc_candidates`` for where else.
    TORCH_CUDA_ARCH_LIST: The architectures of the CUDA kernels, written as torch takes them.
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
import sysconfig
from contextlib import suppress
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
sys.path.append(str(ROOT))  # a build frontend runs this file without its folder
from setup_cuda import CudaMissingError, Toolkit, code_flags, cuda_architectures  # noqa: E402

SLOW = "fusedoptim: installing the pure-Python reference path only, which is slow"
GO_SLOW = "FUSEDOPTIM_NATIVE=0 installs the pure-Python reference path, which is slow"
GET_NVCC = 'install the CUDA toolkit, or pip install "cuda-toolkit[nvcc,cccl]==13.0.*", or name an nvcc in CUDACXX'
# What a changed value of builds anew, apart from CMake's own arguments.
BUILD_ENVIRONMENT = (
    *("CXX", "CXXFLAGS", "LDFLAGS"),
    *("FUSEDOPTIM_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDACXX", "CUDA_HOME", "CUDA_PATH"),
)


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


def setting(name: str) -> str:
    """The value of an environment variable that is auto, 0 or 1."""
    value = os.environ.get(name, "auto")
    if value not in {"auto", "0", "1"}:
        raise SystemExit(f"{name} must be auto, 0 or 1, got {value!r}")
    return value


def compiler() -> str | None:
    """The C++ compiler, if there is one: what CXX names, else the first of the usual names."""
    named = shlex.split(os.environ.get("CXX", ""))[:1]
    return next(filter(None, map(shutil.which, named or ("c++", "g++", "clang++"))), None)


class CMakeBuild(build_ext):
    """Runs CMake once for the whole native part."""

    def run(self) -> None:
        """Build, or say in one line why not: as an error, or where there is no compiler as a word of warning."""
        wanted, cuda = setting("FUSEDOPTIM_NATIVE"), setting("FUSEDOPTIM_CUDA")
        if wanted == "0":
            if cuda == "1":
                raise SystemExit("fusedoptim: FUSEDOPTIM_CUDA=1 and FUSEDOPTIM_NATIVE=0 contradict each other")
            self.go_without("FUSEDOPTIM_NATIVE=0")
            return
        if sysconfig.get_config_var("Py_GIL_DISABLED"):
            raise SystemExit(
                "fusedoptim: the native module relies on the GIL, which this free-threaded build of Python lacks; take "
                f"the usual build of it, or else {GO_SLOW}"
            )
        try:
            super().run()
        except (OSError, subprocess.CalledProcessError, ImportError) as error:
            reason, found = str(error), compiler()
            if isinstance(error, subprocess.CalledProcessError):
                reason = "compilation failed" if "--build" in error.cmd else "CMake's configuration failed"
                reason += f" with {found}; its output is above" if found else ", as there is no C++17 compiler"
            if found or "1" in {wanted, cuda}:
                reason += "" if cuda == "0" else "; FUSEDOPTIM_CUDA=0 leaves out the CUDA kernels"
                raise SystemExit(f"fusedoptim: the native module could not be built: {reason}; {GO_SLOW}") from None
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
        """Build with the CUDA kernels if they are wanted and can be, else without them."""
        cuda, toolkit = setting("FUSEDOPTIM_CUDA"), None
        try:
            if cuda != "0":
                toolkit = Toolkit.find()
                if toolkit is None and cuda == "1":
                    raise CudaMissingError("there is no nvcc")
                if toolkit is None:
                    print("fusedoptim: building without CUDA kernels: there is no nvcc", file=sys.stderr)
        except CudaMissingError as error:
            self.go_without_cuda(str(error))
        try:
            self.build_module(ext, toolkit)
        except subprocess.CalledProcessError:
            if toolkit is None or "1" in {setting("FUSEDOPTIM_NATIVE"), cuda}:
                raise
            self.build_module(ext, None)  # if this fails as well, the compiler is the cause, and not CUDA
            self.go_without_cuda(f"the build with {toolkit.nvcc} failed (pip install -v shows its output)")

    def go_without_cuda(self, reason: str) -> None:
        """Say why the module has no CUDA kernels, or stop where a build that fails is an error."""
        if "1" in {setting("FUSEDOPTIM_NATIVE"), setting("FUSEDOPTIM_CUDA")}:
            raise SystemExit(
                f"fusedoptim: the CUDA kernels cannot be built: {reason}; {GET_NVCC}, or FUSEDOPTIM_CUDA=0"
            )
        tell(f"fusedoptim: building without CUDA kernels: {reason}")

    def build_module(self, ext: Extension, toolkit: Toolkit | None) -> None:
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
        ]  # fmt: skip
        if toolkit is not None:
            architectures = cuda_architectures(os.environ.get("TORCH_CUDA_ARCH_LIST"), toolkit.list_gpu_code)
            configure += [
                "-DFUSEDOPTIM_CUDA=ON", f"-DFUSEDOPTIM_NVCC={toolkit.nvcc}",
                f"-DFUSEDOPTIM_NVCC_VERSION={toolkit.version}", f"-DFUSEDOPTIM_CUDA_INCLUDE={toolkit.include}",
                f"-DFUSEDOPTIM_CUDA_RUNTIME={toolkit.runtime}",
                f"-DFUSEDOPTIM_CUDA_ARCHITECTURES={','.join(architectures)}",
                f"-DFUSEDOPTIM_CUDA_CODE={';'.join(code_flags(architectures))}",
            ]  # fmt: skip
        configure += shlex.split(os.environ.get("FUSEDOPTIM_CMAKE_ARGS", ""))
        # What CMake has cached may be gone (the tools of an isolated build) or changed; then it starts afresh.
        configured_as = json.dumps([configure, *map(os.environ.get, BUILD_ENVIRONMENT)])
        record = build / "configured_as.json"
        fresh = not record.exists() or record.read_text() != configured_as
        record.unlink(missing_ok=True)
        subprocess.run([*configure, *(["--fresh"] if fresh else [])], check=True)
        record.write_text(configured_as)
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


if __name__ == "__main__":  # and not where the tests import it
    setup(ext_modules=[Extension("fusedoptim._C", [])], cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel})
