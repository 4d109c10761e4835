"""Links the extension anew, from the very objects of its build, with a stand-in for the CUDA runtime.

What runs then is the host code of the build, nvcc's own host objects that register its kernels, and the kernels as nvcc
makes them with the flags of the build: as PTX, turned into C++.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import building
import ptx_to_cpp
from building import CSRC, HERE, ROOT, Object

BUILD = ROOT / "build" / f"editable-{sys.implementation.cache_tag}"
STAND_IN = ("runtime.cpp", "ptx_kernels.cpp", "stand_in_runtime.cpp", "posing.cpp")
HOST_FLAGS = ("-O1", "-fPIC")


@cache
def commands() -> list[list[str]]:
    """The commands of the extension's build, as words."""
    ninja = shutil.which("ninja", path=str(Path(sys.executable).parent)) or shutil.which("ninja")
    if ninja is None:
        return []
    done = subprocess.run([ninja, "-C", str(BUILD), "-t", "commands"], capture_output=True, text=True)
    return [shlex.split(line) for line in done.stdout.splitlines()]


def why_not() -> str | None:
    """Why the extension cannot be linked anew, in one line; None if it can."""
    if building.why_not() is not None:
        return building.why_not()
    if not any(word.endswith("cuda/kernels_f32.o") for command in commands() for word in command):
        return "there is no editable build of the extension with CUDA; `make build` makes one where there is an nvcc"
    return None


def _ptx_command(storage: str | None) -> tuple[list[str], Path]:
    """The command that makes PTX of a source where the build made an object, and that source."""
    ending = f"cuda/kernels_{storage}.o" if storage else "cuda/zero.o"
    (command,) = (words for words in commands() if "-c" in words and any(word.endswith(ending) for word in words))
    begin = command.index("&&") + 1
    words = command[begin : command.index("&&", begin)]
    newest = max(int(number) for number in re.findall(r"compute_(\d+)", " ".join(words)))
    words = [word for word in words if not word.startswith("-gencode")]
    source = ROOT / words[words.index("-c") + 1]
    for flag, values in (("-MD", 0), ("-MF", 1), ("-c", 1), ("-o", 1)):
        at = words.index(flag)
        del words[at : at + 1 + values]
    return [*words, f"-arch=compute_{newest}", "-ptx", str(source)], source


def kernels() -> list[Object]:
    """All kernels, as C++ made of their PTX."""
    objects = []
    for storage in (*building.STORAGES, None):
        command, source = _ptx_command(storage)
        key = building.key(*command, source.read_bytes(), *building.headers(CSRC))
        ptx = building.cached(key, f"{source.stem}_{storage}.ptx", command)
        cpp = ptx.with_suffix(".cpp")
        cpp.write_text(ptx_to_cpp.translate(ptx.read_text()))
        objects.append(Object(cpp, HOST_FLAGS))
    return objects


def objects() -> list[Path]:
    """The object files of the stand-in and the kernels."""
    include = ("-isystem", str(building.find_cuda_include()))
    stand_in = [Object(HERE / name, (*HOST_FLAGS, *include)) for name in STAND_IN]
    return building.compile_objects([*kernels(), *stand_in])


def recompile(source: Path, text: str, out: Path) -> Path:
    """Compile another text of one of the extension's sources as the build compiles that."""
    (command,) = (words for words in commands() if words[-1] == str(source))
    words = list(command)
    for flag, values in (("-MD", 0), ("-MT", 1), ("-MF", 1)):
        at = words.index(flag)
        del words[at : at + 1 + values]
    changed, made = out / source.name, out / f"{source.name}.o"
    changed.write_text(text)
    words[words.index("-o") + 1], words[-1] = str(made), str(changed)
    subprocess.run(words, cwd=BUILD, check=True)
    return made


def link(objects: list[Path], out: Path, replaced: Mapping[Path, Path] | None = None) -> Path:
    """Link the extension; ``replaced`` gives other objects for some of its sources."""
    (words,) = (words for words in commands() if "-shared" in words)
    words = words[words.index(":") + 2 : words.index("&&", words.index("-shared"))]
    others = {str(source.relative_to(ROOT)): str(made) for source, made in (replaced or {}).items()}
    target = out / words[words.index("-o") + 1]
    linked: list[str] = []
    for word in words:
        if word.endswith("/libcudart_static.a"):
            linked += map(str, objects)
        else:
            linked.append(others.get(word.split("_C.dir/")[-1].removesuffix(".o"), word))
    linked[linked.index("-o") + 1] = str(target)
    subprocess.run(linked, cwd=BUILD, check=True)
    return target
