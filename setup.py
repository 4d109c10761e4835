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
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
SLOW = "fusedoptim: installing the pure-Python reference path only, which is slow"
GO_SLOW = "FUSEDOPTIM_NATIVE=0 installs the pure-Python reference path, which is slow"
GET_NVCC = 'install the CUDA toolkit, or pip install "cuda-toolkit[nvcc,cccl]==13.0.*", or name an nvcc in CUDACXX'
# What a changed value of builds anew, apart from CMake's own arguments.
BUILD_ENVIRONMENT = (
    *("CXX", "CXXFLAGS", "LDFLAGS"),
    *("FUSEDOPTIM_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDACXX", "CUDA_HOME", "CUDA_PATH"),
)
# Machine code is built for these, as far as the nvcc knows them; and PTX for the newest of them, so for later ones too.
ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
# The names that torch/utils/cpp_extension.py takes, in its order: the longer before those that they contain.
NAMED_ARCHITECTURES = {
    "Kepler+Tesla": "3.7", "Kepler": "3.5+PTX", "Maxwell+Tegra": "5.3", "Maxwell": "5.0;5.2+PTX",
    "Pascal": "6.0;6.1+PTX", "Volta+Tegra": "7.2", "Volta": "7.0+PTX", "Turing": "7.5+PTX", "Ampere+Tegra": "8.7",
    "Ampere": "8.0;8.6+PTX", "Ada": "8.9+PTX", "Hopper": "9.0+PTX", "Blackwell+Tegra": "11.0",
    "Blackwell": "10.0;10.3;12.0;12.1+PTX",
}  # fmt: skip


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


class CudaMissingError(Exception):
    """Why the CUDA kernels cannot be built, in one line."""


def nvcc_candidates(environ: Mapping[str, str], system: Path, packages: list[Path]) -> Iterator[Path]:
    """Every place of an nvcc, the preferred first: what the environment names, the system's, that of PyPI's wheels."""
    if environ.get("CUDACXX"):
        named = shutil.which(environ["CUDACXX"], path=environ.get("PATH"))
        if named is None:
            raise CudaMissingError(f"CUDACXX={environ['CUDACXX']} names no program")
        yield Path(named)
        return
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if environ.get(name):
            yield Path(environ[name]) / "bin" / "nvcc"
    on_path = shutil.which("nvcc", path=environ.get("PATH", ""))
    if on_path:
        yield Path(on_path)
    yield system / "cuda" / "bin" / "nvcc"

    def version(path: Path) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", path.name)]

    for root in sorted(system.glob("cuda-*"), key=version, reverse=True):
        yield root / "bin" / "nvcc"
    for folder in packages:
        for root in sorted(folder.glob("nvidia/cu[0-9]*"), key=version, reverse=True):
            yield root / "bin" / "nvcc"


def cuda_architectures(wanted: str | None, list_gpu_code: str) -> list[str]:
    """The architectures to build for, such as ``["8.0", "9.0", "9.0+PTX"]``.

    Args:
        wanted: As TORCH_CUDA_ARCH_LIST says it; None or empty for the default.
        list_gpu_code: What ``nvcc --list-gpu-code`` prints.

    Raises:
        SystemExit: ``wanted`` has an entry that torch does not know or this nvcc does not.
    """
    known = [f"{code[:-1]}.{code[-1]}" for code in re.findall(r"^sm_(\d+)$", list_gpu_code, re.MULTILINE)]
    if not (wanted or "").strip(" ;"):
        default = [entry for entry in ARCHITECTURES if entry in known] or known[-1:]
        return [*default, f"{default[-1]}+PTX"]
    expanded = wanted.replace(" ", ";")
    for name, meaning in NAMED_ARCHITECTURES.items():
        expanded = expanded.replace(name, meaning)
    chosen = {}
    for entry in filter(None, expanded.split(";")):
        found = re.fullmatch(r"((\d+)\.\d)([af]?)(\+PTX)?", entry)
        # Machine code of one processor only: since 9.0 (a), of one family of them: since 10.0 (f).
        if found is None or int(found[2]) < {"": 0, "a": 9, "f": 10}[found[3]]:
            raise SystemExit(f"fusedoptim: TORCH_CUDA_ARCH_LIST={wanted}: unknown architecture {entry!r}")
        if found[1] not in known:
            raise SystemExit(
                f"fusedoptim: TORCH_CUDA_ARCH_LIST={wanted}: this nvcc does not know {entry!r}, only {', '.join(known)}"
            )
        chosen[found[1] + found[3]] = None
        if found[4]:
            chosen[entry] = None
    return list(chosen)


def code_flags(architectures: list[str]) -> list[str]:
    """The flags by which nvcc generates code for ``architectures``.

    Of one major version all come from the PTX of the oldest chosen: the machine code is the same, and the front end,
    which takes half of the time, runs once for them.
    """
    plain = [tuple(map(int, entry.split("."))) for entry in architectures if re.fullmatch(r"\d+\.\d", entry)]
    flags = []
    for entry in architectures:
        number = source = entry.removesuffix("+PTX").replace(".", "")
        kind = "compute" if entry.endswith("+PTX") else "sm"
        if kind == "sm" and number.isdecimal():
            source = "{}{}".format(*min(other for other in plain if other[0] == int(number[:-1])))
        flags.append(f"-gencode=arch=compute_{source},code={kind}_{number}")
    return flags


class Toolkit(NamedTuple):
    """An nvcc and what belongs to it."""

    nvcc: Path
    version: str
    include: Path
    runtime: Path
    """The static runtime library. The module then needs no CUDA library where it runs, the driver apart."""
    list_gpu_code: str

    @classmethod
    def at(cls, nvcc: Path) -> Toolkit:
        """Ask ``nvcc`` what it is, and where its headers and libraries lie: each distribution has its own layout."""

        def ask(*arguments: str) -> str:
            try:
                done = subprocess.run([nvcc, *arguments], text=True, stdout=-1, stderr=-2, stdin=-3, check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                raise CudaMissingError(f"{nvcc} does not work: {error}") from None
            return done.stdout

        version = re.search(r"\bV(\d+\.\d+\.\d+)", ask("--version"))
        codes = ask("--list-gpu-code")
        if version is None or "sm_" not in codes:
            raise CudaMissingError(f"{nvcc} does not tell its version and architectures")
        told = ask("--dryrun", "-E", "-x", "cu", os.devnull)
        folders = {flag: [Path(path) for path in re.findall(rf'"-{flag}([^"]+)"', told)] for flag in "IL"}
        for top in re.findall(r"^#\$ TOP=(.*)$", told, re.MULTILINE):  # PyPI's wheels have lib where nvcc says lib64
            folders["I"].append(Path(top, "include"))
            folders["L"].append(Path(top, "lib"))

        def find(name: str, flag: str) -> Path:
            held = [folder / name for folder in folders[flag] if (folder / name).exists()]
            if not held:
                raise CudaMissingError(f"{nvcc} has no {name} in {' or '.join(map(str, folders[flag]))}")
            return held[0].resolve()

        include = find("cuda_runtime_api.h", "I").parent
        return cls(nvcc, version[1], include, find("libcudart_static.a", "L"), codes)

    @classmethod
    def find(cls) -> Toolkit | None:
        """The toolkit to build with, if there is any."""
        # An isolated build does not see the packages of the environment that it installs to; the last two name them.
        folders = [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
        packages = [Path(folder) for folder in dict.fromkeys(folders) if folder]
        for nvcc in nvcc_candidates(os.environ, Path("/usr/local"), packages):
            if os.access(nvcc, os.X_OK):
                return cls.at(nvcc.absolute())
        return None


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
