"""Operands of PTX instructions as C++ expressions.

A register is an unsigned integer of its width, or a bool: so bits move unchanged, and arithmetic wraps.
"""

import re

from ptx_parse import NAME, WIDTHS, Kernel, PtxError, Statement

AXES = "([xyz])"
SPECIAL_REGISTERS = {
    f"%tid.{AXES}": "thread_index()",
    f"%ntid.{AXES}": "block_size()",
    f"%ctaid.{AXES}": "block_index()",
    f"%nctaid.{AXES}": "grid_size()",
}


def cpp_type(ptx_type: str) -> str:
    """The C++ type that computes in a PTX type."""
    return {"pred": "bool", "f32": "float", "f64": "double"}.get(
        ptx_type, ("int" if ptx_type[0] == "s" else "uint") + f"{WIDTHS[ptx_type]}_t"
    )


def cpp_name(name: str) -> str:
    return name.replace("%", "").replace("$", "")


class Operands:
    """Reads and writes the operands of one kernel's instructions."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.statement = Statement(kernel.line, "")
        self.used: set[str] = set()

    def error(self, what: str) -> PtxError:
        return PtxError(f"line {self.statement.line}: {what}: {self.statement.text}")

    def register(self, name: str, ptx_type: str, may_be_wider: bool = False) -> str:
        """The C++ name of a register that an instruction may use as a `ptx_type`."""
        declared = self.kernel.registers.get(name)
        if declared is None:
            raise self.error(f"unknown register {name}")
        is_float, in_float = (kind[0] == "f" for kind in (ptx_type, declared))
        wider_fits = may_be_wider and not is_float and WIDTHS[declared] > WIDTHS[ptx_type]
        fits = WIDTHS[declared] == WIDTHS[ptx_type] or wider_fits
        bits = declared[0] == "b" or ptx_type[0] == "b"
        if not fits or (declared == "pred") != (ptx_type == "pred") or (is_float != in_float and not bits):
            raise self.error(f"register {name} of type {declared} as {ptx_type}")
        self.used.add(name)
        return cpp_name(name)

    def immediate(self, text: str, ptx_type: str) -> str | None:
        """A constant as the C++ type of a `ptx_type`, or as the bits of a float."""
        width = WIDTHS[ptx_type]
        if found := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})", text):
            if width != (32 if found[1] else 64) or ptx_type[0] in "su":
                raise self.error(f"constant {text} as {ptx_type}")
            return f"uint{width}_t(0x{found[1] or found[2]})"
        if not re.fullmatch(r"-?(0|[1-9]\d*|0[xX][0-9a-fA-F]+)U?", text):
            return None
        value = int(text.rstrip("U"), 0)
        if ptx_type == "pred":
            return "true" if value else "false"
        if ptx_type[0] == "f" or not -(1 << (width - 1)) <= value < 1 << width:
            raise self.error(f"constant {text} as {ptx_type}")
        literal = str(value) if abs(value) < 1 << 31 else f"{value % (1 << width):#x}u"
        return f"{cpp_type(ptx_type)}({literal})"

    def read(self, text: str, ptx_type: str, may_be_wider: bool = False) -> str:
        """An operand's value, as the C++ type of `ptx_type`."""
        value = self.immediate(text, ptx_type)
        if value is None:
            value = self.register(text, ptx_type, may_be_wider)
            narrows = WIDTHS[self.kernel.registers[text]] > WIDTHS[ptx_type]
            if ptx_type[0] == "s" or narrows:
                value = f"{cpp_type(ptx_type)}({value})"
        return f"as_{ptx_type}({value})" if ptx_type[0] == "f" else value

    def read_address_or_special(self, text: str, ptx_type: str) -> str | None:
        """What `mov` alone can read: the address of a variable, or a special register."""
        for pattern, function in SPECIAL_REGISTERS.items():
            if (found := re.fullmatch(pattern, text)) and ptx_type in ("u32", "b32", "s32"):
                return f"{function}.{found[1]}"
        if text in self.kernel.shared and ptx_type in ("u32", "b32", "u64", "b64"):
            return f"{cpp_type(ptx_type)}({self.kernel.shared[text]}u)"
        if text in self.kernel.params and ptx_type in ("u64", "b64"):
            return self.param(text)
        return None

    def write(self, text: str, ptx_type: str, value: str, may_be_wider: bool = False) -> str:
        """A statement that sets a register to `value`, which has the C++ type of `ptx_type`."""
        name = self.register(text, ptx_type, may_be_wider)
        if ptx_type[0] == "f":
            return f"{name} = bits({value});"
        if WIDTHS[self.kernel.registers[text]] > WIDTHS[ptx_type]:
            value = f"{cpp_type(ptx_type)}({value})"  # extends by its own sign
        return f"{name} = {value};"

    def write_elements(self, names: list[str], ptx_type: str, values: list[str]) -> str:
        """The same for several registers; "_" stands for none."""
        pairs = zip(names, values, strict=True)
        return " ".join(self.write(name, ptx_type, value, may_be_wider=True) for name, value in pairs if name != "_")

    def vector(self, text: str) -> list[str]:
        """The elements of "{a, b}", or the one operand."""
        found = re.fullmatch(r"\{(.*)\}", text)
        return [part.strip() for part in found[1].split(",")] if found else [text]

    # ---- memory ------------------------------------------------------------------------------------------------------
    def param(self, name: str) -> str:
        return f"P{list(self.kernel.params).index(name)}"

    def address(self, text: str, space: str) -> str:
        """An address of the host, as uint64_t. Shared addresses count from the begin of the block's shared memory."""
        found = re.fullmatch(rf"\[({NAME})(?:\+(-?\d+))?\]", text)
        if not found:
            raise self.error(f"unknown address {text}")
        base, offset = found[1], int(found[2] or 0)
        sign = f" {'-' if offset < 0 else '+'} {abs(offset)}" if offset else ""
        if space == "shared" and base in self.kernel.shared:
            return f"S + {self.kernel.shared[base] + offset}"
        if space == "param" and base in self.kernel.params:
            return f"{self.param(base)}{sign}"
        declared = self.kernel.registers.get(base, "")
        if space == "shared" and declared in ("b32", "u32"):
            return f"S + uint32_t({self.register(base, 'b32')}{sign})"
        if declared not in ("b64", "u64"):
            raise self.error(f"unknown address {text}")
        return ("S + " if space == "shared" else "") + self.register(base, "b64") + sign

    def label(self, text: str) -> str:
        if all(statement.label != text for statement in self.kernel.body):
            raise self.error(f"unknown label {text}")
        return cpp_name(text)
