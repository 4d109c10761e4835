"""Reads the text of a PTX module, as far as nvcc makes use of the language. What is not known is an error."""

import bisect
import re
from dataclasses import dataclass, field

WIDTHS = (
    {"pred": 1} | {kind + str(width): width for kind in "bus" for width in (8, 16, 32, 64)} | {"f32": 32, "f64": 64}
)

NAME = r"[A-Za-z_$%][\w$]*"
# Hints to ptxas, which change no value.
HARMLESS_PRAGMA = re.compile(r'\.pragma\s+"(nounroll|used_bytes_mask \w+)"')


class PtxError(Exception):
    """Something in the PTX that is not known exactly, and so must not be translated."""


@dataclass
class Statement:
    """A label, or an instruction with its guard."""

    line: int
    text: str
    label: str = ""
    guard: str = ""  # "", "%p1" or "!%p1"
    opcode: str = ""
    operands: list[str] = field(default_factory=list)


@dataclass
class Kernel:
    name: str
    line: int
    params: dict[str, int] = field(default_factory=dict)  # bytes of each, in order
    max_threads: int = 0  # that a block may have; 0 where the kernel does not say
    registers: dict[str, str] = field(default_factory=dict)  # the type of each
    shared: dict[str, int] = field(default_factory=dict)  # offset of each variable
    shared_bytes: int = 0
    body: list[Statement] = field(default_factory=list)


def split_operands(text: str) -> list[str]:
    """Splits at the commas that are not inside of braces or brackets."""
    parts = re.split(r",(?![^{\[]*[}\]])", text)
    return [re.sub(r"\s+", " ", part.strip()) for part in parts] if text.strip() else []


class Parser:
    def __init__(self, text: str):
        # Comments go, line ends stay: an error names the line.
        blank = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
        self.text = blank.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
        self.line_ends = [found.start() for found in re.finditer("\n", self.text)]
        self.at = 0

    def line(self, at: int) -> int:
        return bisect.bisect_left(self.line_ends, at) + 1

    def fail(self, what: str, at: int | None = None) -> PtxError:
        at = self.at if at is None else at
        shown = self.text[at : at + 100].strip().split("\n")[0]
        return PtxError(f"line {self.line(at)}: {what}: {shown}")

    def take(self, pattern: str) -> re.Match[str] | None:
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1
        found = re.compile(pattern).match(self.text, self.at)
        if found:
            self.at = found.end()
        return found

    def expect(self, pattern: str, what: str) -> re.Match[str]:
        found = self.take(pattern)
        if not found:
            raise self.fail(what)
        return found

    # ---- a module ----------------------------------------------------------------------------------------------------
    def module(self) -> list[Kernel]:
        self.expect(r"\.version\s+\d+\.\d+", "a PTX module must begin with .version")
        self.expect(r"\.target\s+sm_\d+[af]?\s*\n", "unknown .target")
        self.expect(r"\.address_size\s+64\b", "only .address_size 64 is known")
        kernels = []
        while not self.take(r"\Z"):
            self.take(r"\.visible\b")
            kernels.append(self.kernel())
        return kernels

    def kernel(self) -> Kernel:
        begin = self.expect(rf"\.entry\s+({NAME})\s*", "unknown directive of the module")
        kernel = Kernel(begin[1], self.line(begin.start()))
        if self.take(r"\("):
            while not self.take(r"\)"):
                self.parameter(kernel)
                self.take(",")
        while found := self.take(r"\.(maxntid|minnctapersm)\s+(\d+(?:\s*,\s*\d+)*)"):
            if found[1] == "maxntid":
                kernel.max_threads = 1
                for size in found[2].split(","):
                    kernel.max_threads *= int(size)
        self.expect(r"\{", "unknown directive of a kernel")
        self.block(kernel)
        return kernel

    def parameter(self, kernel: Kernel) -> None:
        found = self.expect(rf"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+({NAME})(?:\[(\d+)\])?", "unknown parameter")
        if WIDTHS.get(found[1], 1) < 8:
            raise self.fail("unknown type of a parameter", found.start())
        kernel.params[found[2]] = WIDTHS[found[1]] // 8 * int(found[3] or 1)

    # ---- a kernel's body ---------------------------------------------------------------------------------------------
    def block(self, kernel: Kernel) -> None:
        """Reads up to the brace that ends the kernel. Registers of an inner block get names of their own."""
        scopes: list[dict[str, str]] = [{}]
        while scopes:
            if self.take(r"\{"):
                scopes.append({})
            elif self.take(r"\}"):
                scopes.pop()
            elif found := self.take(rf"({NAME}):"):
                kernel.body.append(Statement(self.line(found.start()), found[0], label=found[1]))
            else:
                found = self.expect(r"([^;]+);", "a statement without an end")
                text = re.sub(r"\s+", " ", found[1].strip())
                if text.startswith(".reg"):
                    self.registers(kernel, text, found.start(), scopes)
                elif text.startswith(".shared"):
                    self.shared(kernel, text, found.start())
                elif text.startswith("."):
                    if not HARMLESS_PRAGMA.fullmatch(text):
                        raise self.fail("unknown directive", found.start())
                else:
                    kernel.body.append(self.instruction(text, found.start(), scopes))

    def registers(self, kernel: Kernel, text: str, at: int, scopes: list[dict[str, str]]) -> None:
        found = re.fullmatch(rf"\.reg \.(\w+) ({NAME})(?:<(\d+)>)?", text)
        if not found or found[1] not in WIDTHS:
            raise self.fail("unknown declaration of registers", at)
        names = [f"{found[2]}{i}" for i in range(int(found[3]))] if found[3] else [found[2]]
        for name in names:
            if len(scopes) > 1:
                scopes[-1][name] = f"{name}_scoped{len(kernel.registers)}"
                name = scopes[-1][name]
            if name in kernel.registers:
                raise self.fail("a register is declared twice", at)
            kernel.registers[name] = found[1]

    def shared(self, kernel: Kernel, text: str, at: int) -> None:
        found = re.fullmatch(rf"\.shared \.align (\d+) \.(\w+) ({NAME})(?:\[(\d+)\])?", text)
        if not found or WIDTHS.get(found[2], 1) < 8 or int(found[1]) > 16:
            raise self.fail("unknown declaration of shared memory", at)
        align = int(found[1])
        offset = (kernel.shared_bytes + align - 1) // align * align
        kernel.shared[found[3]] = offset
        kernel.shared_bytes = offset + WIDTHS[found[2]] // 8 * int(found[4] or 1)

    def instruction(self, text: str, at: int, scopes: list[dict[str, str]]) -> Statement:
        for scope in reversed(scopes):
            for name, own in scope.items():
                text = re.sub(rf"(?<![\w$%]){re.escape(name)}(?![\w$])", own, text)
        found = re.fullmatch(rf"(?:@(!?{NAME}) )?([\w.:]+)(?: (.*))?", text)
        if not found:
            raise self.fail("unknown form of an instruction", at)
        line = self.line(at)
        return Statement(
            line, text + ";", guard=found[1] or "", opcode=found[2], operands=split_operands(found[3] or "")
        )


def parse(text: str) -> list[Kernel]:
    """The kernels of a PTX module."""
    return Parser(text).module()
