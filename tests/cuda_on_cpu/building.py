"""Compiles CUDA kernels for the host, and the programs that run them; with a cache, as templates take their time."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CSRC = ROOT / "csrc"
CACHE = ROOT / "build" / "cuda_on_cpu"
BUILD = ROOT / "build" / f"editable-{sys.implementation.cache_tag}"  # of the extension
COMPILER = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
ARITHMETICS = ("f64", "f32")

FEW = HERE / "few"  # where rules/all.h lists only some


def rules_in(folder: Path) -> list[str]:
    """The names of the rules that a rules/all.h lists, in its order."""
    (found,) = re.findall(r"using AllRules = RuleList<([^>]*)>", (folder / "rules" / "all.h").read_text())
    return re.findall(r"\w+", found)


RULES, FEW_RULES = rules_in(CSRC), rules_in(FEW)
assert RULES[: len(FEW_RULES)] == FEW_RULES, "else they have other numbers"
PROGRAM = ("source_level", "covering", "step_case", "zero_case", "norm_case")
JOBS = 2
DAYS_KEPT = 7  # of what the cache holds, after its last use

# Bits are a contract, as in CMakeLists.txt. Product kernels read one memory as different types, as nvcc lets them.
BITS = ("-std=c++17", "-ffp-contract=off", "-fno-strict-aliasing")


class BuildError(Exception):
    """The compiler's words."""


@dataclass(frozen=True)
class Sanitizer:
    """How kernels are watched."""

    flags: tuple[str, ...] = ()
    runtime: tuple[str, ...] = ()
    """Flags of the runtime, which is not watched itself."""
    arguments: tuple[str, ...] = ()
    """Of the source-level program."""


SANITIZERS = {
    "none": Sanitizer(),
    # Nothing behind the operands: there AddressSanitizer watches.
    "address": Sanitizer(
        ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"), ("-DCUDA_ON_CPU_ASAN",), ("--guard", "0")
    ),
    "thread": Sanitizer(("-fsanitize=thread",), ("-DCUDA_ON_CPU_TSAN",), ("--brief",)),
}
# Threads that are given up leave their memory behind, and what Python preloads is not for these programs.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"} | {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


@dataclass(frozen=True)
class Object:
    """An object file to be: a source, the flags, and the product sources that it includes; or one that is there."""

    source: Path
    flags: tuple[str, ...]
    csrc: Path = CSRC


# ---- the toolkit's headers -----------------------------------------------------------------------------------------


def _include_candidates() -> Iterator[Path]:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            yield Path(os.environ[name]) / "include"
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        yield Path(nvcc).resolve().parent.parent / "include"
    for root in sorted(Path("/usr/local").glob("cuda*")):
        yield root / "include"
    for packages in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        yield from sorted(Path(packages).glob("nvidia/cu1[0-9]/include"), reverse=True)


@cache
def find_cuda_include() -> Path | None:
    """The folder of CUDA's own headers, which are all that g++ needs of it."""
    for folder in _include_candidates():
        if all((folder / name).is_file() for name in ("cuda_runtime_api.h", "cuda_fp16.h", "vector_functions.h")):
            return folder
    return None


def why_not() -> str | None:
    """Why kernels cannot be compiled here, in one line; None if they can."""
    if COMPILER is None:
        return "there is no C++ compiler"
    if find_cuda_include() is None:
        return "there are no CUDA headers: no nvcc on PATH, in CUDA_HOME, /usr/local/cuda or site-packages"
    return None


# ---- compiling, with a cache ---------------------------------------------------------------------------------------


@cache
def _compiler_version() -> str:
    return subprocess.run([str(COMPILER), "--version"], capture_output=True, text=True, check=True).stdout


def key(*parts: object) -> str:
    """A name for what is made of these parts by this compiler."""
    digest = hashlib.sha256()
    for part in (COMPILER, _compiler_version(), *parts):
        digest.update(part if isinstance(part, bytes) else str(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:24]


def headers(folder: Path) -> Iterator[object]:
    """The names and contents of all headers of a folder: parts of a key."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".h", ".cuh"):
            yield path.relative_to(folder)
            yield path.read_bytes()


def cached(named: str, name: str, command: Sequence[str]) -> Path:
    """The file that ``command`` makes if told its path at the end."""
    made = CACHE / named / name
    if made.exists():
        os.utime(made.parent)
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    with open(made.with_name(f"{name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be making the same
        if made.exists():
            return made
        partial = made.with_name(f"{name}.part")
        done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True)
        if done.returncode != 0:
            raise BuildError(done.stderr[:4000])
        partial.replace(made)  # whole or not at all
    return made


def _compile(wanted: Object) -> Path:
    contents = wanted.source.read_bytes()
    if wanted.source.suffix == ".o":  # where its name is that of its contents
        return cached(key(contents), wanted.source.name, [str(COMPILER), "-r", "-nostdlib", str(wanted.source)])
    named = key(*wanted.flags, wanted.source.name, contents, *headers(wanted.csrc), *headers(HERE))
    folders = (f"-I{wanted.csrc}", f"-I{HERE}")
    command = [str(COMPILER), *BITS, *wanted.flags, *folders, "-c", str(wanted.source)]
    return cached(named, f"{wanted.source.stem}.o", command)


def compile_objects(objects: Sequence[Object]) -> list[Path]:
    """Compile what the cache does not hold, as many at once as pays on a small machine.

    Raises:
        BuildError: With the compiler's words.
    """
    prune()
    with ThreadPoolExecutor(JOBS) as pool:
        return list(pool.map(_compile, objects))


def link(objects: Sequence[Path], name: str, flags: Sequence[str] = ()) -> Path:
    """Link a program from objects that ``compile_objects`` gave."""
    return cached(key(*objects, *flags), name, [str(COMPILER), *flags, *map(str, objects)])


def optimized_once(words: list[str], folder: Path) -> list[str]:
    """The words of a link of the extension, with one object in place of those that all such links have.

    GCC would optimize them anew in each, for some 20 s. What lies in them is the key, so none is of another build; what
    GCC cannot put together it is left to link as it would.
    """
    ours = [word for word in words if re.search(r"/_C\.dir/csrc/(cpu|python)/", word)]
    if "-flto=auto" not in words or not ours:  # clang says it otherwise
        return words
    # In one partition: of several, GCC 12 makes no object.
    flags = ("-O3", "-fPIC", "-flto=auto", "-flto-partition=none", "-r", "-flinker-output=nolto-rel", "-nostdlib")
    paths = [folder / word for word in ours]
    named = key(words[0], *flags, *(path.read_bytes() for path in paths))
    try:
        together = cached(named, "together.o", [words[0], *flags, *map(str, paths)])
    except BuildError:
        return words
    at = words.index(ours[0])
    return [*words[:at], str(together), *(word for word in words[at:] if word not in ours)]


def prune() -> None:
    """Remove what nobody has used for some days."""
    for folder in CACHE.glob("*"):
        if time.time() - folder.stat().st_mtime > DAYS_KEPT * 24 * 3600:
            shutil.rmtree(folder, ignore_errors=True)


# ---- what the extension's build has made --------------------------------------------------------------------------


@cache
def commands() -> list[list[str]]:
    """The commands of the extension's build, as words."""
    ninja = shutil.which("ninja", path=str(Path(sys.executable).parent)) or shutil.which("ninja")
    if ninja is None:
        return []
    done = subprocess.run([ninja, "-C", str(BUILD), "-t", "commands"], capture_output=True, text=True)
    return [shlex.split(line) for line in done.stdout.splitlines()]


def is_newer(made: Path, *suffixes: str) -> bool:
    """Whether the build has made this file after the last change of any source of these kinds."""
    sources = (path for path in CSRC.rglob("*") if path.suffix in suffixes)
    return made.exists() and made.stat().st_mtime > max(path.stat().st_mtime for path in sources)


def _baseline_of_build() -> list[Path]:
    """The build's own objects of the baseline kernels, if they are of these sources and not watched by a sanitizer."""
    found = []
    for words in commands():
        if "-DFUSEDOPTIM_ISA=baseline" in words and "-c" in words:
            found.append(BUILD / words[words.index("-o") + 1])
            watched = any(word.startswith("-fsanitize") for word in words)
            if not is_newer(found[-1], ".h", ".cpp") or watched or "-ffp-contract=off" not in words:
                return []
    return found


# ---- what programs are made of -------------------------------------------------------------------------------------


def of_rule(rule: str) -> tuple[str, str]:
    """Flags that name the rule whose kernels are compiled."""
    return f"-DFUSEDOPTIM_RULE={rule}", f'-DFUSEDOPTIM_RULE_HEADER="rules/{rule.lower()}.h"'


def kernels(
    sanitizer: str,
    arithmetics: Sequence[str] = ARITHMETICS,
    csrc: Path = CSRC,
    optimize: str = "-O1",
    rules: Sequence[str] = RULES,
) -> list[Object]:
    """The product's kernels, as host code."""
    host = ("-x", "c++", "-isystem", str(find_cuda_include()), "-include", "device_on_host.h", "-Wno-unknown-pragmas")
    flags = (*host, "-g1", optimize, *SANITIZERS[sanitizer].flags)
    step = [
        Object(csrc / "cuda" / "kernels.cu", (*flags, *of_rule(rule), f"-DFUSEDOPTIM_ARITHMETIC={name}"), csrc)
        for rule in rules
        for name in arithmetics
    ]
    return [*step, *(Object(csrc / "cuda" / f"{name}.cu", flags, csrc) for name in ("norm", "zero"))]


def runtime(sanitizer: str) -> Object:
    """The runtime for kernels that are watched by ``sanitizer``."""
    return Object(HERE / "runtime.cpp", ("-O1", "-g1", *SANITIZERS[sanitizer].runtime))


def cpu_driver() -> list[Object]:
    """The product's CPU driver, with the baseline kernels and without the choice among others."""
    flags = ("-O2", "-fno-math-errno", "-fno-trapping-math")
    own = (*flags, "-DFUSEDOPTIM_ISA=baseline")
    kernels = [Object(made, own) for made in _baseline_of_build()]
    if not kernels:
        kernels = [Object(CSRC / "cpu" / "kernels.cpp", (*own, *of_rule(rule))) for rule in RULES]
        kernels.append(Object(CSRC / "cpu" / "passes.cpp", own))
    sources = sorted((CSRC / "cpu").rglob("*.cpp"))
    others = [path for path in sources if path.stem not in ("kernels", "passes")]
    return [*kernels, *(Object(path, flags) for path in others)]


def source_level(
    sanitizer: str,
    arithmetics: Sequence[str] = ARITHMETICS,
    csrc: Path = CSRC,
    optimize: str = "-O1",
    rules: Sequence[str] = RULES,
) -> Path:
    """The program of ``source_level.cpp``, with the kernels of ``csrc`` for some rules."""
    whole = tuple(arithmetics) == ARITHMETICS
    sources = [HERE / f"{name}.cpp" for name in PROGRAM]
    sources.append(CSRC / "cuda" / "kernels.cpp" if whole else HERE / "linked_kernels.cpp")
    flags = () if whole else (f"-DFUSEDOPTIM_ARITHMETIC={arithmetics[0]}",)
    flags += () if rules == RULES else (f"-I{FEW}",)
    program = [Object(source, (*flags, "-O1", "-g1")) for source in sources]
    cuda = ("-isystem", str(find_cuda_include()), "-O1", "-g1")
    program += [Object(HERE / "table_case.cpp", cuda), Object(csrc / "cuda" / "buckets.cpp", cuda, csrc)]
    # The slowest first, so that the last does not run alone.
    objects = [*kernels(sanitizer, arithmetics, csrc, optimize, rules), *cpu_driver(), *program, runtime(sanitizer)]
    return link(compile_objects(objects), "source_level", SANITIZERS[sanitizer].flags)


def run_source_level(program: Path, sanitizer: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it; stdout holds all that was said."""
    command = [str(program), *SANITIZERS[sanitizer].arguments, *arguments]
    while True:
        done = subprocess.run(command, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        # Where the kernel moves programs about more than ThreadSanitizer can follow.
        if "unexpected memory mapping" not in done.stdout or command[0] == "setarch" or not shutil.which("setarch"):
            return done
        command = ["setarch", "-R", *command]
