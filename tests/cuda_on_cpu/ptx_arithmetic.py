"""What each PTX instruction that computes does, as a C++ statement.

An opcode must match one of the patterns below as a whole. So nothing passes that is not listed: no .approx, .ftz,
.full, .sat or other rounding than .rn; and no add, sub or mul of floats without .rn, which ptxas may turn into an fma.
"""

import re

from ptx_operands import Operands, cpp_type
from ptx_parse import WIDTHS
from ptx_table import ANY, BITS, FLOAT, INTEGER, instruction, simple, unsigned

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
