"""What each PTX instruction that moves, converts, accesses memory or branches does, as a C++ statement."""

import re

from ptx_operands import Operands, cpp_type
from ptx_parse import WIDTHS
from ptx_table import ANY, FLOAT, STORED, instruction, unsigned


# ---- moves and conversions -------------------------------------------------------------------------------------------
@instruction(rf"mov\.(?:{ANY}|(?P<pred>pred))", 2)
def move(operand: Operands, found: re.Match[str], args: list[str]) -> str:
    ptx_type = found["type"] or "pred"
    to, source = operand.vector(args[0]), operand.vector(args[1])
    if "{" in args[0] + args[1] and ptx_type[0] != "b":
        raise operand.error("unknown form of mov")
    if args[0].startswith("{"):
        part = element_type(operand, ptx_type, len(to))
        value = operand.read(args[1], ptx_type)
        values = [f"{cpp_type(part)}(whole >> {i * WIDTHS[part]})" for i in range(len(to))]
        return f"{{ const {cpp_type(ptx_type)} whole = {value}; {operand.write_elements(to, part, values)} }}"
    if args[1].startswith("{"):
        part = element_type(operand, ptx_type, len(source))
        whole = cpp_type(ptx_type)
        value = " | ".join(
            f"{whole}({operand.read(element, part)}) << {i * WIDTHS[part]}" for i, element in enumerate(source)
        )
        return operand.write(args[0], ptx_type, value)
    value = operand.read_address_or_special(args[1], ptx_type)
    if value is not None:
        return operand.write(args[0], unsigned(ptx_type), value)
    bits = ptx_type if ptx_type == "pred" else "b" + ptx_type[1:]  # a move keeps the bits of a NaN
    operand.read(args[1], ptx_type)
    operand.register(args[0], ptx_type)
    return operand.write(args[0], bits, operand.read(args[1], bits))


def element_type(operand: Operands, ptx_type: str, count: int) -> str:
    part = f"b{WIDTHS[ptx_type] // count}"
    if count not in (2, 4) or WIDTHS.get(part, 0) < 16:
        raise operand.error("unknown vector")
    return part


@instruction(r"cvt\.(?P<to>[su](?:8|16|32|64))\.(?P<type>[su](?:8|16|32|64))", 2)
def convert_integers(operand: Operands, found: re.Match[str], args: list[str]) -> str:
    value = operand.read(args[1], found["type"], may_be_wider=True)
    return operand.write(args[0], found["to"], f"{cpp_type(found['to'])}({value})", may_be_wider=True)


@instruction(r"cvt\.rn\.(?P<to>f32|f64)\.(?P<type>[su](?:8|16|32|64))", 2)
def convert_to_float(operand: Operands, found: re.Match[str], args: list[str]) -> str:
    value = operand.read(args[1], found["type"], may_be_wider=True)
    return operand.write(args[0], found["to"], f"{cpp_type(found['to'])}({value})")


ROUNDINGS = {"rni": "std::nearbyint", "rzi": "std::trunc", "rmi": "std::floor", "rpi": "std::ceil"}


@instruction(rf"cvt\.(?P<round>rni|rzi|rmi|rpi)\.(?P<to>[su](?:8|16|32|64)|f32|f64)\.{FLOAT}", 2)
def convert_to_integer(operand: Operands, found: re.Match[str], args: list[str]) -> str:
    value = f"{ROUNDINGS[found['round']]}({operand.read(args[1], found['type'])})"
    if found["to"][0] != "f":
        return operand.write(args[0], found["to"], f"to_integer<{cpp_type(found['to'])}>({value})", may_be_wider=True)
    if found["to"] != found["type"]:
        raise operand.error("unknown conversion")
    return operand.write(args[0], found["to"], value)


CONVERSIONS = {
    "f64.f32": "double({})",
    "rn.f32.f64": "float({})",
    "f32.f16": "f16_to_f32({})",
    "rn.f16.f32": "f32_to_f16({})",
    "f32.bf16": "bf16_to_f32({})",
    "rn.bf16.f32": "f32_to_bf16({})",
}


@instruction(rf"cvt\.(?P<how>{'|'.join(CONVERSIONS)})", 2)
def convert_floats(operand: Operands, found: re.Match[str], args: list[str]) -> str:
    to, source = (re.sub(r"b?f16", "b16", part) for part in found["how"].removeprefix("rn.").split("."))
    return operand.write(args[0], to, CONVERSIONS[found["how"]].format(operand.read(args[1], source)))


@instruction(r"cvt\.rn\.(?P<to>b?f16)x2\.f32", 3)
def convert_pair(operand: Operands, found: re.Match[str], args: list[str]) -> str:
    # The first goes to the upper half.
    high, low = (f"uint32_t(f32_to_{found['to']}({operand.read(arg, 'f32')}))" for arg in args[1:])
    return operand.write(args[0], "b32", f"{high} << 16 | {low}")


# ---- memory ----------------------------------------------------------------------------------------------------------
@instruction(rf"ld(?:\.(?P<space>global|shared|param))?(?:\.v(?P<count>[24]))?\.{STORED}", 2)
def load(operand: Operands, found: re.Match[str], args: list[str]) -> str:
    to, access = vector_access(operand, found, args[0])
    address = operand.address(args[1], found["space"] or "generic")
    for register in to:
        if register != "_":
            operand.register(register, found["type"], may_be_wider=True)
    # As bits; a wider register is filled up by the sign of a signed type.
    ptx_type = found["type"] if found["type"][0] == "s" else "b" + str(WIDTHS[found["type"]])
    if len(to) == 1:
        return operand.write(to[0], ptx_type, f"AT(const {access}, {address})", may_be_wider=True)
    values = [f"loaded.at[{i}]" for i in range(len(to))]
    return (
        f"{{ const {access} loaded = AT(const {access}, {address}); {operand.write_elements(to, ptx_type, values)} }}"
    )


@instruction(rf"st(?:\.(?P<space>global|shared))?(?:\.v(?P<count>[24]))?\.{STORED}", 2)
def store(operand: Operands, found: re.Match[str], args: list[str]) -> str:
    source, access = vector_access(operand, found, args[1])
    address = operand.address(args[0], found["space"] or "generic")
    bits = "b" + str(WIDTHS[found["type"]])
    values = [
        operand.read(one, found["type"], may_be_wider=True) and operand.read(one, bits, may_be_wider=True)
        for one in source
    ]
    if len(values) == 1:
        return f"AT({access}, {address}) = {values[0]};"
    return f"AT({access}, {address}) = {{{{{', '.join(values)}}}}};"


def vector_access(operand: Operands, found: re.Match[str], text: str) -> tuple[list[str], str]:
    """The registers of a load or store, and the C++ type of what is accessed in memory."""
    count, width = int(found["count"] or 1), WIDTHS[found["type"]]
    registers = operand.vector(text)
    if len(registers) != count or text.startswith("{") != (count > 1) or count * width > 128:
        raise operand.error("unknown vector")
    return registers, f"u{width}x{count}" if count > 1 else f"uint{width}_t"


@instruction(r"cvta(?P<to>\.to)?\.(?P<space>global|shared|param)\.u64", 2)
def convert_address(operand: Operands, found: re.Match[str], args: list[str]) -> str:
    # Only shared memory has addresses of its own here.
    value = operand.read_address_or_special(args[1], "u64") or operand.read(args[1], "u64")
    if found["space"] == "shared":
        value = f"{value} - S" if found["to"] else f"S + {value}"
    return operand.write(args[0], "u64", value)


@instruction(r"isspacep\.(?P<space>global|shared)", 2)
def is_in_space(operand: Operands, found: re.Match[str], args: list[str]) -> str:
    # Parameters are kept where nothing writes, and are asked for by nobody: what is not shared is global.
    is_shared = f"{operand.read(args[1], 'u64')} - S < {operand.kernel.shared_bytes}"
    return operand.write(args[0], "pred", f"!({is_shared})" if found["space"] == "global" else is_shared)


ATOMICS = {
    "inc": ("increase", "u32"),
    "dec": ("decrease", "u32"),
    "add": ("add", "u32|s32|u64"),
    "min": ("min", "u32|s32|u64|s64"),
    "max": ("max", "u32|s32|u64|s64"),
    "exch": ("exchange", "b32|b64"),
}


# Neither narrower than the device nor, as add.f32, rounded in ways of their own.
@instruction(
    r"atom(?:\.relaxed)?(?:\.gpu|\.sys)?(?:\.(?P<space>global|shared))?\."
    rf"(?:{'|'.join(rf'(?P<{op}>{op})[.](?P<type_{op}>{types})' for op, (_, types) in ATOMICS.items())})",
    3,
)
def atomic(operand: Operands, found: re.Match[str], args: list[str]) -> str:
    op = next(op for op in ATOMICS if found[op])
    ptx_type = found[f"type_{op}"]
    compute = unsigned(ptx_type) if op == "add" else ptx_type
    address = operand.address(args[1], found["space"] or "generic")
    value = f"atomic_{ATOMICS[op][0]}<{cpp_type(compute)}>({address}, {operand.read(args[2], compute)})"
    return operand.write(args[0], compute, value)


# ---- control ---------------------------------------------------------------------------------------------------------
@instruction(r"bra(?:\.uni)?", 1)
def branch(operand: Operands, _: re.Match[str], args: list[str]) -> str:
    return f"goto {operand.label(args[0])};"


@instruction(r"ret(?:\.uni)?|exit", 0)
def leave(*_: object) -> str:
    return "return;"


@instruction(r"(?:bar|barrier)(?:\.cta)?\.sync(?:\.aligned)?", 1)
def barrier(operand: Operands, _: re.Match[str], args: list[str]) -> str:
    if args[0] != "0":
        raise operand.error("unknown barrier")
    return "block_barrier();"


def check_whole_warp(operand: Operands, mask: str) -> None:
    if mask not in ("-1", "0xffffffff"):
        raise operand.error("not of all threads of a warp")


@instruction(r"bar\.warp\.sync", 1)
def warp_barrier(operand: Operands, _: re.Match[str], args: list[str]) -> str:
    check_whole_warp(operand, args[0])
    return "warp_barrier();"


@instruction(r"redux\.sync\.max\.u32", 3)
def warp_maximum(operand: Operands, _: re.Match[str], args: list[str]) -> str:
    check_whole_warp(operand, args[2])
    return operand.write(args[0], "u32", f"warp_maximum({operand.read(args[1], 'u32')})")


@instruction(r"shfl\.sync\.bfly\.b32", 5)
def warp_exchange(operand: Operands, _: re.Match[str], args: list[str]) -> str:
    check_whole_warp(operand, args[4])
    target, is_from_lane = [*args[0].split("|"), "_"][:2]
    if args[3] != "31":
        raise operand.error("not of all lanes")
    value = f"warp_exchange({operand.read(args[1], 'b32')}, {operand.read(args[2], 'b32')})"
    exchange = operand.write(target, "b32", value)
    return exchange if is_from_lane == "_" else f"{{ {exchange} {operand.write(is_from_lane, 'pred', 'true')} }}"


# Not those of a block only.
@instruction(r"membar\.(?:gl|sys)|fence(?:\.sc|\.acq_rel)?\.(?:gpu|sys)", 0)
def memory_fence(*_: object) -> str:
    return "fence();"
