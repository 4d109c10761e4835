"""Turns the PTX that nvcc makes of kernels into C++ that runs on the host, on runtime.h.

The command is `python ptx_to_cpp.py in.ptx out.cpp`. What the PTX contains and this does not know exactly is an error
that names its line. Compile the C++ with -ffp-contract=off -fno-strict-aliasing, and link it with ptx_kernels.cpp.

A kernel becomes `extern "C" void ptx_<its name>(const void* const* params)`, which is what find_ptx_kernel finds.
"""

import sys
from pathlib import Path

import ptx_arithmetic  # noqa: F401 - fills the table
import ptx_moves  # noqa: F401
from ptx_operands import Operands, cpp_name
from ptx_parse import WIDTHS, Kernel, PtxError, Statement, parse
from ptx_table import find

HEADER = """\
// Made from PTX by ptx_to_cpp.py.
#include "ptx_semantics.h"

#pragma GCC diagnostic ignored "-Wunused-but-set-variable"
#pragma GCC diagnostic ignored "-Wunused-label"

using namespace ptx;
"""


def translate_statement(operands: Operands, statement: Statement) -> str:
    """One line of C++, with the PTX as its comment."""
    operands.statement = statement
    if statement.label:
        return f"{cpp_name(statement.label)}:;"
    known = find(statement.opcode)
    if known is None:
        raise operands.error("unknown instruction")
    match, count, handler = known
    if count not in (-1, len(statement.operands)):
        raise operands.error("wrong number of operands")
    code = handler(operands, match, statement.operands)
    if statement.guard:
        negated, register = statement.guard.startswith("!"), statement.guard.lstrip("!")
        code = f"if ({'!' if negated else ''}{operands.register(register, 'pred')}) {code}"
    return f"  {code}  // {statement.line}: {statement.text}"


def translate_kernel(kernel: Kernel) -> str:
    operands = Operands(kernel)
    body = [translate_statement(operands, statement) for statement in kernel.body]
    lines = [f'extern "C" void ptx_{kernel.name}([[maybe_unused]] const void* const* params) {{']
    for i, name in enumerate(kernel.params):
        lines.append(f"  [[maybe_unused]] const uint64_t P{i} = reinterpret_cast<uint64_t>(params[{i}]);  // {name}")
    if kernel.shared:
        lines.append("  static const char key = 0;")
        lines.append(f"  const uint64_t S = reinterpret_cast<uint64_t>(shared_memory(&key, {kernel.shared_bytes}));")
        lines.extend(f"  // {name} is at S + {offset}" for name, offset in kernel.shared.items())
    else:
        lines.append("  [[maybe_unused]] const uint64_t S = 0;")
    for name, kind in kernel.registers.items():
        if name in operands.used:
            stored = "bool" if kind == "pred" else f"uint{WIDTHS[kind]}_t"
            lines.append(f"  {stored} {cpp_name(name)} = kUnset<{stored}>;")
    sizes = ", ".join(str(size) for size in kernel.params.values())
    entry = f'{{"{kernel.name}", ptx_{kernel.name}, {{{sizes}}}, {kernel.max_threads}}}'
    return "\n".join([*lines, *body, "}", f"static const RegisterPtxKernel registered_{kernel.name}({entry});", ""])


def translate(ptx: str) -> str:
    """The C++ of all kernels of a PTX module. Raises PtxError."""
    return "\n".join([HEADER, *(translate_kernel(kernel) for kernel in parse(ptx))])


def main(arguments: list[str]) -> int:
    source, target = map(Path, arguments)
    try:
        target.write_text(translate(source.read_text()))
    except PtxError as error:
        print(f"{source}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
