"""The table of PTX instructions that are known, and how to add to it."""

import re
from collections.abc import Callable
from functools import cache

from ptx_operands import Operands

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
