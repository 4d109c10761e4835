"""What each PTX instruction does, as a C++ statement.

An opcode must match one of the patterns below as a whole. So nothing passes that is not listed: no .approx, .ftz,
.full, .sat or other rounding than .rn; and no add, sub or mul of floats without .rn, which ptxas may turn into an fma.
"""

import re
from collections.abc import Callable
from functools import cache

from ptx_operands import Operands, cpp_type
from ptx_parse import WIDTHS

Handler = Callable[[Operands, re.Match[str], list[str]], str]
INSTRUCTIONS: list[tuple[re.Pattern[str], int, Handler]] = []

FLOAT = r"(?P<type>f32|f64)"
INTEGER = r"(?P<type>[su](?:16|32|64))"
BITS = r"(?P<type>b(?:16|32|64))"
ANY = r"(?P<type>[bsu](?:16|32|64)|f32|f64)"
STORED = r"(?P<type>[bsu](?:8|16|32|64)|f32|f64)"


def instruction(pattern: str, operands: int) -> Callable[[Handler], Handler]:
    def add(handler: Handler) -> Handler:
        INSTRUCTIONS.append((re.compile(pattern), operands, handler))
        return handler

    return add


@cache
def find(opcode: str) -> tuple[re.Match[str], int, Handler] | None:
    for pattern, operands, handler in INSTRUCTIONS:
        if found := pattern.fullmatch(opcode):
            return found, operands, handler
    return None


def unsigned(ptx_type: str) -> str:
    return "u" + ptx_type[1:]


def simple(pattern: str, value: str, operands: int, as_unsigned: bool = False) -> None:
    """An instruction whose operands all have its type; `value` is a format of operands 1, 2, ...

    `as_unsigned` is for what wraps around in PTX, and must not overflow in C++.
    """

    def handle(operand: Operands, found: re.Match[str], args: list[str]) -> str:
        ptx_type = found["type"] if not as_unsigned else unsigned(found["type"])
        read = [operand.read(arg, ptx_type) for arg in args[1:]]
        return operand.write(args[0], ptx_type, value.format("", *read))

    instruction(pattern, operands)(handle)


# ---- arithmetic ------------------------------------------------------------------------------------------------------
simple(rf"add\.rn\.{FLOAT}", "{1} + {2}", 3)
simple(rf"sub\.rn\.{FLOAT}", "{1} - {2}", 3)
simple(rf"mul\.rn\.{FLOAT}", "{1} * {2}", 3)
simple(rf"div\.rn\.{FLOAT}", "{1} / {2}", 3)
simple(rf"rcp\.rn\.{FLOAT}", "1 / {1}", 2)
simple(rf"sqrt\.rn\.{FLOAT}", "std::sqrt({1})", 2)
simple(rf"fma\.rn\.{FLOAT}", "std::fma({1}, {2}, {3})", 4)
simple(rf"neg\.{FLOAT}", "-{1}", 2)
simple(rf"abs\.{FLOAT}", "std::fabs({1})", 2)
simple(rf"min\.{FLOAT}", "minimum({1}, {2})", 3)
simple(rf"max\.{FLOAT}", "maximum({1}, {2})", 3)
simple(rf"copysign\.{FLOAT}", "std::copysign({2}, {1})", 3)

simple(rf"add\.{INTEGER}", "{1} + {2}", 3, as_unsigned=True)
simple(rf"sub\.{INTEGER}", "{1} - {2}", 3, as_unsigned=True)
simple(rf"mul\.lo\.{INTEGER}", "multiply_low({1}, {2})", 3, as_unsigned=True)
simple(rf"mad\.lo\.{INTEGER}", "multiply_low({1}, {2}) + {3}", 4, as_unsigned=True)
simple(rf"mul\.hi\.{INTEGER}", "multiply_high({1}, {2})", 3)
simple(rf"div\.{INTEGER}", "divide({1}, {2})", 3)
simple(rf"rem\.{INTEGER}", "remainder({1}, {2})", 3)
simple(rf"min\.{INTEGER}", "std::min({1}, {2})", 3)
simple(rf"max\.{INTEGER}", "std::max({1}, {2})", 3)
simple(r"neg\.(?P<type>s(?:16|32|64))", "0 - {1}", 2, as_unsigned=True)
simple(r"abs\.(?P<type>s(?:16|32|64))", "absolute({1})", 2)


@instruction(r"(?P<op>mul|mad)\.wide\.(?P<type>[su](?:16|32))", -1)
def wide_multiply(operand: Operands, found: re.Match[str], args: list[str]) -> str:
    wide = found["type"][0] + str(2 * WIDTHS[found["type"]])
    if len(args) != (3 if found["op"] == "mul" else 4):
        raise operand.error("wrong number of operands")
    factors = [f"{cpp_type(wide)}({operand.read(arg, found['type'])})" for arg in args[1:3]]
    value = f"uint{WIDTHS[wide]}_t({' * '.join(factors)})"
    if found["op"] == "mad":
        value += " + " + operand.read(args[3], unsigned(wide))
    return operand.write(args[0], unsigned(wide), value)


# ---- bits ------------------------------------------------------------------------------------------------------------
simple(rf"and\.{BITS}", "{1} & {2}", 3)
simple(rf"or\.{BITS}", "{1} | {2}", 3)
simple(rf"xor\.{BITS}", "{1} ^ {2}", 3)
simple(rf"not\.{BITS}", "~{1}", 2)
simple(r"and\.(?P<type>pred)", "{1} && {2}", 3)
simple(r"or\.(?P<type>pred)", "{1} || {2}", 3)
simple(r"xor\.(?P<type>pred)", "{1} != {2}", 3)
simple(r"not\.(?P<type>pred)", "!{1}", 2)
simple(r"shf\.l\.wrap\.(?P<type>b32)", "funnel_left({1}, {2}, {3} & 31)", 4)
simple(r"shf\.r\.wrap\.(?P<type>b32)", "funnel_right({1}, {2}, {3} & 31)", 4)
simple(r"shf\.l\.clamp\.(?P<type>b32)", "funnel_left({1}, {2}, std::min({3}, uint32_t(32)))", 4)
simple(r"shf\.r\.clamp\.(?P<type>b32)", "funnel_right({1}, {2}, std::min({3}, uint32_t(32)))", 4)
simple(r"prmt\.(?P<type>b32)", "permute_bytes({1}, {2}, {3})", 4)
simple(r"lop3\.(?P<type>b32)", "look_up_bits({1}, {2}, {3}, {4})", 5)


@instruction(r"(?P<op>shl)\.(?P<type>b(?:16|32|64))|shr\.(?P<right>[bsu](?:16|32|64))", 3)
def shift(operand: Operands, found: re.Match[str], args: list[str]) -> str:
    ptx_type = found["type"] or found["right"]
    function = "shift_left" if found["op"] else "shift_right"
    value = f"{function}({operand.read(args[1], ptx_type)}, {operand.read(args[2], 'u32')})"
    return operand.write(args[0], ptx_type, value)


@instruction(r"bfe\.(?P<type>[su](?:32|64))", 4)
def extract(operand: Operands, found: re.Match[str], args: list[str]) -> str:
    read = [operand.read(arg, kind) for arg, kind in zip(args[1:], (found["type"], "u32", "u32"), strict=True)]
    return operand.write(args[0], found["type"], f"extract_bits({', '.join(read)})")


@instruction(r"bfi\.(?P<type>b(?:32|64))", 5)
def insert(operand: Operands, found: re.Match[str], args: list[str]) -> str:
    kinds = (found["type"], found["type"], "u32", "u32")
    read = [operand.read(arg, kind) for arg, kind in zip(args[1:], kinds, strict=True)]
    return operand.write(args[0], found["type"], f"insert_bits({', '.join(read)})")


# ---- comparisons -----------------------------------------------------------------------------------------------------
ORDER = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}


def comparison(compare: str, ptx_type: str, a: str, b: str) -> str | None:
    """Of floats, "lt" is false on a NaN and "ltu" is true; and so on."""
    kind = ptx_type[0]
    if kind != "f":
        known = {"eq": "==", "ne": "!="}
        if kind != "b":
            known |= {name: sign for name, sign in ORDER.items() if kind == "u" or name[1] in "te"}
        return f"{a} {known[compare]} {b}" if compare in known else None
    has_nan = f"std::isunordered({a}, {b})"
    special = {"num": f"!{has_nan}", "nan": has_nan, "eq": f"{a} == {b}", "neu": f"{a} != {b}"}
    special |= {"ne": f"(!{has_nan} && {a} != {b})", "equ": f"({has_nan} || {a} == {b})"}
    if compare in special:
        return special[compare]
    if compare in ("lt", "le", "gt", "ge"):
        return f"{a} {ORDER[compare]} {b}"
    if compare in ("ltu", "leu", "gtu", "geu"):
        return f"({has_nan} || {a} {ORDER[compare[:2]]} {b})"
    return None


@instruction(rf"setp\.(?P<compare>[a-z]+)(?:\.(?P<combine>and|or|xor))?\.{ANY}", -1)
def set_predicate(operand: Operands, found: re.Match[str], args: list[str]) -> str:
    ptx_type = found["type"]
    if len(args) != (4 if found["combine"] else 3):
        raise operand.error("wrong number of operands")
    value = comparison(found["compare"], ptx_type, operand.read(args[1], ptx_type), operand.read(args[2], ptx_type))
    if value is None:
        raise operand.error("unknown comparison")
    targets = args[0].split("|")
    if len(targets) == 1 and not found["combine"]:
        return operand.write(targets[0], "pred", value)
    combine = ""
    if found["combine"]:
        third = ("!" if args[3].startswith("!") else "") + operand.read(args[3].lstrip("!"), "pred")
        combine = f" {({'and': '&&', 'or': '||', 'xor': '!='})[found['combine']]} third"
    # All is read before anything is written: a target may be a source.
    before = f"const bool is = {value}" + (f", third = {third}" if combine else "") + ";"
    values = [f"is{combine}", f"!is{combine}"][: len(targets)]
    return f"{{ {before} {operand.write_elements(targets, 'pred', values)} }}"


@instruction(rf"selp\.{ANY}", 4)
def select(operand: Operands, found: re.Match[str], args: list[str]) -> str:
    # The bits of one or the other.
    bits = "b" + str(WIDTHS[found["type"]])
    a, b = (operand.read(arg, found["type"]) and operand.read(arg, bits) for arg in args[1:3])
    return operand.write(args[0], bits, f"{operand.read(args[3], 'pred')} ? {a} : {b}")


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


# Not those of a block only.
@instruction(r"membar\.(?:gl|sys)|fence(?:\.sc|\.acq_rel)?\.(?:gpu|sys)", 0)
def memory_fence(*_: object) -> str:
    return "fence();"
