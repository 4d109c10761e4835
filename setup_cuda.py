"""Which CUDA toolkit setup.py builds the kernels with, and for which architectures.

Environment: see setup.py. Nothing here imports setuptools, CMake or torch.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

# Machine code is built for these, as far as the nvcc knows them; and PTX for the newest of them, so for later ones too.
ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
# The names that torch/utils/cpp_extension.py takes, in its order: the longer before those that they contain.
NAMED_ARCHITECTURES = {
    "Kepler+Tesla": "3.7", "Kepler": "3.5+PTX", "Maxwell+Tegra": "5.3", "Maxwell": "5.0;5.2+PTX",
    "Pascal": "6.0;6.1+PTX", "Volta+Tegra": "7.2", "Volta": "7.0+PTX", "Turing": "7.5+PTX", "Ampere+Tegra": "8.7",
    "Ampere": "8.0;8.6+PTX", "Ada": "8.9+PTX", "Hopper": "9.0+PTX", "Blackwell+Tegra": "11.0",
    "Blackwell": "10.0;10.3;12.0;12.1+PTX",
}  # fmt: skip


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
