"""Links the extension anew, from the very objects of its build, with a stand-in for the CUDA runtime.

What runs then is the host code of the build, nvcc's own host objects that register its kernels, and the kernels as nvcc
made them: as PTX, turned into C++.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

import building
import ptx_to_cpp

HERE = Path(__file__).parent
SOURCES = ("runtime.cpp", "ptx_kernels.cpp", "stand_in_runtime.cpp", "posing.cpp")
STORAGES = ("f64", "f32", "bf16", "f16")


def link_command(build: Path) -> list[str]:
    """The command that linked the extension in a build folder of setup.py."""
    ninja = building.tool("ninja")
    commands = subprocess.run([ninja, "-C", build, "-t", "commands"], capture_output=True, text=True, check=True).stdout
    (command,) = (line for line in commands.splitlines() if " -shared " in line)
    words = shlex.split(command)
    return words[words.index(":") + 2 : words.index("&&", 3)]


def compile_command(build: Path, source: str) -> list[str]:
    """The command that compiled one source file of the extension there, without the file and its output."""
    ninja = building.tool("ninja")
    commands = subprocess.run([ninja, "-C", build, "-t", "commands"], capture_output=True, text=True, check=True).stdout
    (command,) = (line for line in commands.splitlines() if line.endswith(f"/{source}"))
    words = shlex.split(command)
    for flag, extra in (("-o", 1), ("-MF", 1), ("-MT", 1), ("-MD", 0), ("-c", 1)):
        at = words.index(flag)
        del words[at : at + 1 + extra]
    return words


def kernels(nvcc: Path, out: Path) -> list[Path]:
    """Objects of all kernels, from nvcc's PTX for the newest architecture that it knows."""
    newest = building.architectures(nvcc)[-1]
    sources = [("kernels.cu", storage) for storage in STORAGES] + [("zero.cu", None)]
    ptx, cpp = [], []
    for source, storage in sources:
        target = out / f"{Path(source).stem}_{storage}.ptx"
        define = [f"-DFUSEDOPTIM_STORAGE={storage}"] if storage else []
        code = building.ROOT / "csrc" / "cuda" / source
        ptx.append([nvcc, *building.NVCC_FLAGS, *define, f"-arch={newest}", "-ptx", code, "-o", target])
        cpp.append(target)
    building.run_all(ptx)
    for target in cpp:
        target.with_suffix(".cpp").write_text(ptx_to_cpp.translate(target.read_text()))
    return building.compile_all([target.with_suffix(".cpp") for target in cpp], out, ["-O1", "-fPIC"])


def build(nvcc: Path, extension_build: Path, out: Path) -> Path:
    """The extension, linked with the stand-in; returns the module's file."""
    out.mkdir(parents=True, exist_ok=True)
    include = ["-isystem", building.cuda_include(nvcc)]
    stand_in = building.compile_all([HERE / name for name in SOURCES], out, ["-O1", "-fPIC", *include])
    return link(extension_build, [*kernels(nvcc, out), *stand_in], out, {})


def link(extension_build: Path, objects: list[Path], out: Path, replaced: Mapping[str, Path]) -> Path:
    """Link, with the objects of some sources of the extension replaced, by names such as ``csrc/cuda/run.cpp``."""
    command = link_command(extension_build)
    target = out / command[command.index("-o") + 1]
    words: list[str] = []
    for word in command:
        source = word.split(".dir/")[-1].removesuffix(".o")
        if word.endswith("libcudart_static.a"):
            words += map(str, objects)
        elif source in replaced:
            words.append(str(replaced[source]))
        else:
            words.append(word)
    words[words.index("-o") + 1] = str(target)
    subprocess.run(words, cwd=extension_build, check=True)
    return target
