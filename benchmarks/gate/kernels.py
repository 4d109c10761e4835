"""Reads the kernels' machine code: are their loops packed, and as wide as their instruction set has it?

The object files are read, since the module is stripped; that the module holds the very same code is checked.
"""

import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

REGISTERS = {"avx512": "zmm", "avx2": "ymm", "baseline": "xmm"}
FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
KERNEL = re.compile(
    r"fusedoptim::(\w+)::(?:Loop<fusedoptim::(\w+), (?:fusedoptim::)?(\w+), (\d+), (true|false)>::run"
    r"|(unscale|scale)<(?:fusedoptim::)?(\w+)>)\("
)
INSTRUCTION = re.compile(r"^ *([0-9a-f]+):\t((?:[0-9a-f]{2} )+) *\t(.*)$")
RELOCATION = re.compile(r"^\t+([0-9a-f]+): (R_\w+)")
ARITHMETIC = re.compile(r"^v?(fn?m(?:add|sub)(?=\d)|mul|add|sub|div|sqrt)(?:\d{3})?([ps])[sd]$")
VECTOR_REGISTER = re.compile(r"\b[xyz]mm\d")


@dataclass(frozen=True)
class Instruction:
    address: int
    code: bytes
    name: str
    operands: str

    @property
    def target(self) -> int | None:
        """Where it jumps to within its function, None if it does not."""
        found = re.match(r"([0-9a-f]+) <", self.operands) if self.name.startswith("j") else None
        return int(found[1], 16) if found else None


@dataclass
class Function:
    """The code of a function, and which of its bytes the linker writes."""

    instructions: list[Instruction] = field(default_factory=list)
    linked: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Loop:
    """What the loops of a kernel are made of that compute or fetch operands ahead; of several, the worst of each."""

    instructions: int  # how many there are in a turn, those of all branches
    packed: frozenset[str]  # which arithmetic is done on whole registers of the instruction set's width
    other: int  # arithmetic on scalars or on narrower registers
    stack: int  # vectors loaded from the stack or stored there
    calls: int


def name_of(symbol: str) -> str | None:
    """A kernel's name for a table, None for another function.

    "avx2 Adam float 0" is variant 0, and "avx2 Adam float 0 average" the one that also moves averages.
    """
    found = KERNEL.search(symbol)
    if found is None or "[clone" in symbol:
        return None
    words = {"true": "average", "false": ""}
    return " ".join(word for part in found.groups() if part and (word := words.get(part, part)))


def disassemble(path: Path) -> dict[str, Function]:
    """The kernels of an object file, by name; RuntimeError if there is no objdump, or it fails."""
    command = ["objdump", "-d", "-r", "-C", "-M", "intel", "--insn-width=16", str(path)]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"cannot read {path}: {error}") from error
    kernels: dict[str, Function] = {}
    here = Function()
    for line in text.splitlines():
        if found := FUNCTION.match(line):
            name = name_of(found[1])
            here = kernels.setdefault(name, Function()) if name else Function()
        elif found := INSTRUCTION.match(line):
            name, _, operands = found[3].partition(" ")
            here.instructions.append(Instruction(int(found[1], 16), bytes.fromhex(found[2]), name, operands.strip()))
        elif found := RELOCATION.match(line):
            at = int(found[1], 16)
            relaxable = "GOTPCREL" in found[2]  # the linker may write another instruction
            here.linked |= set(range(at - 3 * relaxable, at + 4))
    return kernels


def reach(edges: dict[int, list[int]], start: int) -> set[int]:
    """All that can be reached from `start`, itself only if it is on a cycle."""
    seen: set[int] = set()
    todo = list(edges[start])
    while todo:
        at = todo.pop()
        if at not in seen:
            seen.add(at)
            todo += edges[at]
    return seen


def loops(function: Function) -> Iterator[list[Instruction]]:
    """The outermost loops: instructions from which one comes back to the same instruction."""
    code = function.instructions
    forward: dict[int, list[int]] = {i.address: [] for i in code}
    back: dict[int, list[int]] = {i.address: [] for i in code}
    for instruction, after in zip(code, [*(i.address for i in code[1:]), None], strict=True):
        falls_through = instruction.name not in ("jmp", "ret", "ud2")
        for successor in (instruction.target, after if falls_through else None):
            if successor is not None and successor in forward:
                forward[instruction.address].append(successor)
                back[successor].append(instruction.address)
    found: set[int] = set()
    for instruction in code:
        begin = instruction.target
        if begin is None or begin not in forward or begin > instruction.address or begin in found:
            continue
        if body := reach(forward, begin) & reach(back, begin):
            found |= body
            yield [i for i in code if i.address in body]


def measure(function: Function, register: str) -> Loop | None:
    framed = any(i.name == "mov" and i.operands == "rbp,rsp" for i in function.instructions)
    stack = re.compile(r"\[r[sb]p\b" if framed else r"\[rsp\b")
    measured = []
    for body in loops(function):
        kinds: Counter[str] = Counter()
        other = 0
        for i in body:
            if found := ARITHMETIC.match(i.name):
                if found[2] == "p" and register in i.operands:
                    kinds["fma" if found[1].startswith("f") else found[1]] += 1
                else:
                    other += 1
        if kinds or other or any(i.name.startswith("prefetch") for i in body):
            spilled = sum(bool(stack.search(i.operands) and VECTOR_REGISTER.search(i.operands)) for i in body)
            calls = sum(i.name == "call" for i in body)
            measured.append(Loop(len(body), frozenset(kinds), other, spilled, calls))
    if not measured:
        return None
    return Loop(
        max(loop.instructions for loop in measured),
        frozenset.intersection(*(loop.packed for loop in measured)),
        max(loop.other for loop in measured),
        max(loop.stack for loop in measured),
        max(loop.calls for loop in measured),
    )


def holds(module: bytes, function: Function) -> bool:
    """Whether the linked module contains the function, but for what the linker writes."""
    code = b"".join(i.code for i in function.instructions)
    fixed = [at not in function.linked for at in range(len(code))]
    runs = list(re.finditer(rb"\x01+", bytes(fixed)))
    longest = max(runs, key=lambda run: run.end() - run.start())
    piece = code[longest.start() : longest.end()]
    at = module.find(piece)
    while at >= 0:
        there = module[at - longest.start() : at - longest.start() + len(code)]
        if len(there) == len(code) and all(a == b for a, b, keep in zip(code, there, fixed, strict=True) if keep):
            return True
        at = module.find(piece, at + 1)
    return False


def read_kernels(objects: Iterable[Path]) -> dict[str, Function]:
    return {name: function for path in objects for name, function in disassemble(path).items()}


def measure_kernels(kernels: dict[str, Function]) -> dict[str, Loop | None]:
    return {name: measure(function, REGISTERS[name.split()[0]]) for name, function in sorted(kernels.items())}
