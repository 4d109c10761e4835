"""Reads the machine code and the PTX of a compiled module, and tells what is wrong with them.

It is what a GPU would run, so what is shown here needs no GPU: that nothing is kept in local memory, that memory is
accessed 128 bits at a time, and that every operation on floating-point numbers is IEEE's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

MAX_REGISTERS = 128  # with more, two blocks of 256 threads do not fit into the 65,536 registers of a processor
# Reciprocals that IEEE division and square root start from, by Newton's iteration; any other is an approximation.
SEEDS = {"MUFU.RCP", "MUFU.RSQ", "MUFU.RCP64H", "MUFU.RSQ64H"}
FLOATS = {"f16", "f16x2", "bf16", "bf16x2", "f32", "f32x2", "f64"}
ROUNDED = {"add", "sub", "mul", "fma", "div", "rcp", "sqrt"}
EXACT = {"ld", "st", "mov", "neg", "abs", "copysign", "min", "max", "set", "setp", "selp"}

_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
_FUNCTION = re.compile(r"^\s*Function : (\S+)$", re.MULTILINE)
_USAGE = re.compile(r"^ *Function (\S+):\s+REG:(\d+) STACK:(\d+).*? LOCAL:(\d+)", re.MULTILINE)
_PTX = re.compile(r"^\.target (sm_\w+)", re.MULTILINE)
_PTX_ENTRY = re.compile(r"^\s*(?:\.\w+ )*\.entry (\w+)\(", re.MULTILINE)
_PTX_INSTRUCTION = re.compile(r"^\s*(?:@!?%p\d+\s+)?([a-z][a-z0-9_.:]*)\s[^;]*;", re.MULTILINE)
_OTHER = re.compile(r"4cudaL?\d(zero|norm|clip|judge)E")
# The kernels of no rule, and how many instructions of each kind must access 128 bits. In that of the
# norm, of which each thread adds one lane, the loads that come ahead of the first use are counted instead.
OTHERS: dict[str, dict[str, int]] = {
    "zero": {"STG": 1},
    "clip": {"LDG": 3, "STG": 3},
    "norm": {},
    "judge": {},
}
READ_AHEAD = 8
_STEP = re.compile(r"4cuda3(f64|f32)4stepINS_\d+(\w+?)ELi(\d+)E")


@dataclass(frozen=True)
class Variant:
    """What a kernel is made from."""

    arithmetic: str
    rule: str
    number: int


@dataclass
class Kernel:
    """One kernel as machine code for one architecture."""

    instructions: Counter[str] = field(default_factory=Counter)
    registers: int = 0
    stack: int = 0
    local: int = 0
    ahead: int = 0
    """The most loads from global memory one after the other, with nothing between them that uses what they load."""


@dataclass
class Ptx:
    """All PTX of the module for one architecture."""

    kernels: set[str] = field(default_factory=set)
    instructions: Counter[str] = field(default_factory=Counter)


@dataclass
class Contents:
    """The device code of a module, by architecture (such as 9.0) and the kernels' mangled names."""

    code: dict[str, dict[str, Kernel]]
    ptx: dict[str, Ptx]

    @property
    def architectures(self) -> list[str]:
        """As build_info() lists them."""
        return [*self.code, *(f"{name}+PTX" for name in self.ptx)]


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit: that of the Python package, else that on PATH."""
    for folder in sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu[0-9]*/bin"), reverse=True):
        if (folder / name).exists():
            return str(folder / name)
    return shutil.which(name)


def as_version(target: str) -> str:
    """``sm_90a`` as 9.0a."""
    digits, suffix = re.fullmatch(r"sm_(\d+)(\w*)", target).groups()
    return f"{digits[:-1]}.{digits[-1]}{suffix}"


def variant_of(kernel: str) -> Variant | None:
    """What a step kernel is made from, by its mangled name; None for other kernels."""
    found = _STEP.search(kernel)
    return Variant(found[1], found[2], int(found[3])) if found else None


def other_of(kernel: str) -> str | None:
    """What a kernel of ``OTHERS`` is called, by its mangled name; None for step kernels."""
    found = _OTHER.search(kernel)
    return found[1] if found else None


def read_ahead(instructions: Iterable[str]) -> int:
    """The most loads from global memory with neither an operation on numbers nor an end of their block in between."""
    most = count = 0
    for name in instructions:
        operation = name.split(".")[0]
        if operation == "LDG":
            count += 1
            most = max(most, count)
        elif operation in {"F2F", "FADD", "FMUL", "FFMA", "DADD", "DMUL", "DFMA", "BRA", "EXIT", "BAR"}:
            count = 0
    return most


# ---- reading ---------------------------------------------------------------------------------------------------------
def parse_code(sass: str, usage: str) -> dict[str, Kernel]:
    """The kernels in what ``cuobjdump -sass`` and ``cuobjdump -res-usage`` print for one architecture."""
    kernels: dict[str, Kernel] = {}
    _, *parts = _FUNCTION.split(sass)
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        kernel, listed = kernels.setdefault(name, Kernel()), _INSTRUCTION.findall(text)
        kernel.instructions.update(listed)
        kernel.ahead = max(kernel.ahead, read_ahead(listed))
    for name, *numbers in _USAGE.findall(usage):
        kernel = kernels.setdefault(name, Kernel())
        kernel.registers, kernel.stack, kernel.local = map(int, numbers)
    return kernels


def parse_ptx(text: str) -> dict[str, Ptx]:
    """The PTX in what ``cuobjdump -ptx`` prints."""
    found: dict[str, Ptx] = {}
    _, *parts = _PTX.split(text)
    for target, body in zip(parts[::2], parts[1::2], strict=True):
        ptx = found.setdefault(as_version(target), Ptx())
        ptx.kernels.update(_PTX_ENTRY.findall(body))
        ptx.instructions.update(_PTX_INSTRUCTION.findall(body))
    return found


@cache
def contents(module: Path) -> Contents:
    """Everything at once, half a minute of disassembly on one processor: the architectures side by side."""
    cuobjdump = tool("cuobjdump")
    assert cuobjdump is not None

    def dump(*arguments: str) -> str:
        return subprocess.run([cuobjdump, *arguments, module], text=True, capture_output=True, check=True).stdout

    def code_of(target: str) -> dict[str, Kernel]:
        return parse_code(dump("-arch", target, "-sass"), dump("-arch", target, "-res-usage"))

    targets = list(dict.fromkeys(re.findall(r"\.(sm_\w+)\.cubin", dump("-lelf"))))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        code = dict(zip(map(as_version, targets), pool.map(code_of, targets), strict=True))
    return Contents(code, parse_ptx(dump("-ptx")))


# ---- judging ---------------------------------------------------------------------------------------------------------
def _wide(instructions: Counter[str], *kinds: str) -> int:
    """How many instructions of these kinds access 128 bits at a time."""
    return sum(
        count for name, count in instructions.items() if name.split(".")[0] in kinds and "128" in name.split(".")
    )


def problems_of_kernel(kernel: Kernel, accesses: tuple[int, int] | None, other: str | None = None) -> list[str]:
    """What is wrong with one kernel.

    Args:
        kernel: The kernel.
        accesses: How many loads and stores of a step kernel must access 128 bits; None for another kernel.
        other: The name of another kernel, in ``OTHERS``.
    """
    problems = []
    instructions = kernel.instructions
    if not instructions or not kernel.registers:
        problems.append("was not read")
    local = {name: count for name, count in instructions.items() if name.split(".")[0] in {"LDL", "STL"}}
    if local or kernel.stack or kernel.local:
        problems.append(f"uses local memory: {local}, stack {kernel.stack}, local {kernel.local}")
    if kernel.registers > MAX_REGISTERS:
        problems.append(f"needs {kernel.registers} registers")
    approximate = {name for name in instructions if name.split(".")[0] == "MUFU"} - SEEDS
    if approximate:
        problems.append(f"approximates: {sorted(approximate)}")
    if accesses is None:
        for kind, count in OTHERS[other or ""].items():
            if _wide(instructions, kind) < count:
                problems.append(f"has {_wide(instructions, kind)} 128-bit {kind} and not {count}")
        if other == "norm" and kernel.ahead < READ_AHEAD:
            problems.append(f"reads {kernel.ahead} elements ahead and not {READ_AHEAD}")
        return problems
    # A load of unknown address space (LD, ST) is slower, so it does not count.
    for kind, verb, count in zip(("LDG", "STG"), ("loads", "stores"), accesses, strict=True):
        if _wide(instructions, kind) < count:
            problems.append(f"has {_wide(instructions, kind)} 128-bit {verb} and not {count}")
    return problems


def problems_of_ptx(instructions: Iterable[str]) -> list[str]:
    """What is wrong with PTX: floating-point instructions that are not IEEE's, or that a compiler may fuse.

    ``add``, ``sub`` and ``mul`` that name no rounding may be fused when PTX becomes machine code.
    """
    problems = []
    for name in sorted(set(instructions)):
        operation, *modifiers = name.split(".")
        approximate = {"approx", "ftz", "full"}.intersection(modifiers)
        if not FLOATS.intersection(modifiers) and not approximate:
            continue
        if approximate:
            problems.append(f"{name} is not IEEE's")
        elif operation in ROUNDED:
            if "rn" not in modifiers:
                problems.append(f"{name} names no rounding to nearest")
        elif operation == "cvt":
            # To whole numbers it truncates (rzi), and what is exact names no rounding.
            if {"rz", "rm", "rp"}.intersection(modifiers):
                problems.append(f"{name} does not round to nearest")
        elif operation not in EXACT:
            problems.append(f"{name} is not known to be exact or rounded")
    return problems


def problems_of_architectures(wanted: list[str], found: list[str]) -> list[str]:
    """Which of the architectures of build_info() the module lacks, and which it has besides."""
    problems = [f"lacks {name}" for name in wanted if name not in found]
    return problems + [f"has {name} besides" for name in found if name not in wanted]
