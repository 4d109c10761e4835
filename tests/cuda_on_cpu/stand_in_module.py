"""Links the extension anew, from the very objects of its build, with a stand-in for the CUDA runtime.

What runs then is the host code of the build, nvcc's own host objects that register its kernels, and the kernels as nvcc
makes them with the flags of the build: as PTX, turned into C++.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import building
import machine_code
import ptx_to_cpp
from building import ARITHMETICS, BUILD, CSRC, HERE, ROOT, RULES, Object, commands

STAND_IN = ("runtime.cpp", "ptx_kernels.cpp", "stand_in_runtime.cpp", "posing.cpp")
HOST_FLAGS = ("-O1", "-fPIC")
KERNEL_FLAGS = ("-Og", "-fPIC")  # to compile them takes longer than to run them


def why_not() -> str | None:
    """Why the extension cannot be linked anew, in one line; None if it can."""
    if building.why_not() is not None:
        return building.why_not()
    if not any(word.endswith("cuda/adam_f32.o") for command in commands() for word in command):
        return "there is no editable build of the extension with CUDA; `make build` makes one where there is an nvcc"
    return None


def _command(name: str) -> list[str]:
    """The command by which nvcc made an object of the build."""
    ending = f"cuda/{name}.o"
    (command,) = (words for words in commands() if "-c" in words and any(word.endswith(ending) for word in words))
    begin = command.index("&&") + 1
    return command[begin : command.index("&&", begin)]


def _ptx_of_build(name: str, newest: int) -> str | None:
    """What the object holds of PTX for this architecture; None if there is none, or it is older than its sources."""
    made, cuobjdump = BUILD / "cuda" / f"{name}.o", machine_code.tool("cuobjdump")
    if cuobjdump is None or not building.is_newer(made, ".h", ".cuh", ".cu"):
        return None
    told = subprocess.run([cuobjdump, "-ptx", made], capture_output=True, text=True).stdout
    found = re.findall(rf"^\.version .*\n\.target sm_{newest}$[^=]*?(?=\nFatbin |\Z)", told, re.MULTILINE)
    return found[0] if len(found) == 1 else None


def _ptx_of_nvcc(name: str, newest: int) -> str:
    """What nvcc makes of the source with the flags of the build."""
    words = [word for word in _command(name) if not word.startswith("-gencode")]
    source = ROOT / words[words.index("-c") + 1]
    for flag, values in (("-MD", 0), ("-MF", 1), ("-c", 1), ("-o", 1)):
        at = words.index(flag)
        del words[at : at + 1 + values]
    command = [*words, f"-arch=compute_{newest}", "-ptx", str(source)]
    key = building.key(*command, source.read_bytes(), *building.headers(CSRC))
    return building.cached(key, f"{name}.ptx", command).read_text()


def ptx(name: str) -> str:
    """The PTX of a source for the newest architecture of the build."""
    newest = max(int(number) for number in re.findall(r"compute_(\d+)", " ".join(_command(name))))
    return _ptx_of_build(name, newest) or _ptx_of_nvcc(name, newest)


def kernels() -> list[Object]:
    """All kernels, as C++ made of their PTX."""
    objects = []
    for name in (*(f"{rule.lower()}_{type_}" for rule in RULES for type_ in ARITHMETICS), "zero", "norm"):
        text = ptx_to_cpp.translate(ptx(name))
        cpp = building.CACHE / building.key(text) / f"{name}.cpp"
        cpp.parent.mkdir(parents=True, exist_ok=True)
        if not cpp.exists():  # whole at once, for another process may be compiling it
            whole = cpp.with_suffix(f".{os.getpid()}")
            whole.write_text(text)
            whole.replace(cpp)
        objects.append(Object(cpp, KERNEL_FLAGS))
    return objects


def objects() -> list[Path]:
    """The object files of the stand-in and the kernels."""
    include = ("-isystem", str(building.find_cuda_include()))
    stand_in = [Object(HERE / name, (*HOST_FLAGS, *include)) for name in STAND_IN]
    return building.compile_objects([*kernels(), *stand_in])


def host_objects(csrc: Path) -> list[Object]:
    """The extension's own C++, of another copy of the sources, compiled quickly."""
    objects = []
    for words in commands():
        if not any("/_C.dir/" in word for word in words) or "-c" not in words:
            continue
        flags = [word for word in words[1 : words.index("-MD")] if not word.startswith(("-flto", "-fno-fat", "-O"))]
        flags = [word for word in flags if word != f"-I{CSRC}"]
        source = Path(words[-1]).relative_to(CSRC)
        objects.append(Object(csrc / source, (*flags, "-O1"), csrc))
    return objects


def link(objects: list[Path], out: Path, host: list[Path] | None = None) -> Path:
    """Link the extension; ``host`` are other objects of its own C++ than those of the build."""
    (words,) = (words for words in commands() if "-shared" in words)
    words = words[words.index(":") + 2 : words.index("&&", words.index("-shared"))]
    target = out / words[words.index("-o") + 1]
    linked: list[str] = []
    for word in building.optimized_once(words, BUILD) if host is None else words:
        if word.endswith("/libcudart_static.a"):
            linked += map(str, [*objects, *(host or [])])
        elif host is None or ("_C.dir/" not in word and not word.startswith("-flto")):
            linked.append(word)
    linked[linked.index("-o") + 1] = str(target)
    subprocess.run(linked, cwd=BUILD, check=True)
    return target


def run_posed(module: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run tests in a process in which tensors pose as CUDA tensors."""
    folders = os.pathsep.join(map(str, (HERE, ROOT / "tests" / "tools")))
    environment = {**os.environ, "FUSEDOPTIM_STAND_IN": str(module), "PYTHONPATH": folders}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "posed", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
