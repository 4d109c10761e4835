"""Small kernels in PTX, one for each family of instructions, and what the PTX ISA says that they compute."""

import math
import re
import struct
from dataclasses import dataclass

MODULE = ".version 9.0\n.target sm_120\n.address_size 64\n"
REGISTERS = """
    .reg .pred %p<10>; .reg .b16 %rs<10>; .reg .b32 %r<10>; .reg .b64 %rd<10>; .reg .f32 %f<10>; .reg .f64 %fd<10>;
    .reg .b64 %in; .reg .b64 %out; .reg .b32 %flag;
    ld.param.u64 %in, [launch]; ld.param.u64 %out, [launch+8];
"""
WIDTHS = {"p": 1, "rs": 16, "r": 32, "rd": 64, "f": 32, "fd": 64}
NAN, INF = math.nan, math.inf


def kernel(name: str, body: str) -> str:
    return f".visible .entry {name}(\n.param .align 16 .b8 launch[48]\n)\n.maxntid 256\n{{{REGISTERS}{body}\nret;\n}}\n"


def kind(register: str) -> str:
    return re.match("[a-z]+", register)[0]


@dataclass
class Case:
    """Instructions between registers, and rows of what goes in and what must come out."""

    body: str
    inputs: str
    outputs: str
    rows: list

    def ptx(self, name: str) -> str:
        lines = []
        for i, register in enumerate(self.inputs.split()):
            if kind(register) == "p":
                lines.append(f"ld.global.u32 %flag, [%in+{8 * i}]; setp.ne.s32 %{register}, %flag, 0;")
            else:
                lines.append(f"ld.global.b{WIDTHS[kind(register)]} %{register}, [%in+{8 * i}];")
        lines.append(self.body)
        for i, register in enumerate(self.outputs.split()):
            if kind(register) == "p":
                lines.append(f"selp.b32 %flag, 1, 0, %{register}; st.global.u32 [%out+{8 * i}], %flag;")
            else:
                lines.append(f"st.global.b{WIDTHS[kind(register)]} [%out+{8 * i}], %{register};")
        return kernel(name, "\n".join(lines))


def one(instruction: str, inputs: str, outputs: str, *rows: tuple) -> Case:
    """A case with one output, which is the last item of each row."""
    return Case(instruction, inputs, outputs, [(row[:-1], row[-1:]) for row in rows])


MAX32, MIN32, MAX64, MIN64 = 2**31 - 1, -(2**31), 2**63 - 1, -(2**63)
TINY = 2.0**-149

CASES = {
    # Integers.
    "add.s32": one("add.s32 %r3, %r1, %r2;", "r1 r2", "r3", (MAX32, 1, MIN32), (-1, 1, 0)),
    "add.s16": one("add.s16 %rs3, %rs1, %rs2;", "rs1 rs2", "rs3", (0x7FFF, 1, 0x8000), (0xFFFF, 2, 1)),
    "sub.s64": one("sub.s64 %rd3, %rd1, %rd2;", "rd1 rd2", "rd3", (MIN64, 1, MAX64), (5, 7, -2)),
    "add with a constant": one("add.s64 %rd2, %rd1, -16384;", "rd1", "rd2", (16384, 0), (0, -16384)),
    "mul.lo.s32": one("mul.lo.s32 %r3, %r1, %r2;", "r1 r2", "r3", (0x10001, 0x10001, 0x20001), (-3, 5, -15)),
    "mul.lo.u16": one("mul.lo.u16 %rs3, %rs1, %rs2;", "rs1 rs2", "rs3", (0xFFFF, 0xFFFF, 1)),
    "mul.lo.s64": one("mul.lo.s64 %rd3, %rd1, %rd2;", "rd1 rd2", "rd3", (MAX64, 2, -2), (-7, 6, -42)),
    "mul.wide.s32": one("mul.wide.s32 %rd1, %r1, %r2;", "r1 r2", "rd1", (-1, 8, -8), (MIN32, MIN32, 2**62)),
    "mul.wide.u32": one("mul.wide.u32 %rd1, %r1, %r2;", "r1 r2", "rd1", (2**32 - 1, 8, (2**32 - 1) * 8)),
    "mul.wide.u16": one("mul.wide.u16 %r1, %rs1, %rs2;", "rs1 rs2", "r1", (0xFFFF, 0xFFFF, 0xFFFE0001)),
    "mul.wide.s16": one("mul.wide.s16 %r1, %rs1, %rs2;", "rs1 rs2", "r1", (0x8000, 0x8000, 2**30), (0xFFFF, 3, -3)),
    "mul.hi.u32": one("mul.hi.u32 %r3, %r1, %r2;", "r1 r2", "r3", (2**32 - 1, 2**32 - 1, 2**32 - 2)),
    "mul.hi.s32": one("mul.hi.s32 %r3, %r1, %r2;", "r1 r2", "r3", (-1, 1, -1), (MIN32, MIN32, 2**30)),
    "mul.hi.u64": one("mul.hi.u64 %rd3, %rd1, %rd2;", "rd1 rd2", "rd3", (2**64 - 1, 2**64 - 1, 2**64 - 2)),
    "mul.hi.s64": one("mul.hi.s64 %rd3, %rd1, %rd2;", "rd1 rd2", "rd3", (-1, 1, -1), (MIN64, MIN64, 2**62)),
    "mad.lo.s64": one("mad.lo.s64 %rd4, %rd1, %rd2, %rd3;", "rd1 rd2 rd3", "rd4", (MAX64, 2, 1, -1), (-2, 3, 4, -2)),
    "mad.lo.s16": one("mad.lo.s16 %rs3, %rs1, %rs1, %rs2;", "rs1 rs2", "rs3", (0xFFFF, 0xFFFF, 0)),
    "mad.wide.s32": one("mad.wide.s32 %rd2, %r1, 16, %rd1;", "r1 rd1", "rd2", (-1, 10, -6)),
    "mad.wide.u32": one("mad.wide.u32 %rd2, %r1, 16, %rd1;", "r1 rd1", "rd2", (-1, 10, (2**32 - 1) * 16 + 10)),
    "div.s64": one("div.s64 %rd3, %rd1, %rd2;", "rd1 rd2", "rd3", (-7, 2, -3), (MIN64, -1, MIN64), (7, -2, -3)),
    "div.u32": one("div.u32 %r3, %r1, %r2;", "r1 r2", "r3", (-1, 2, MAX32), (7, -1, 0)),
    "div.s32": one("div.s32 %r3, %r1, %r2;", "r1 r2", "r3", (-1, 2, 0), (MIN32, -1, MIN32), (9, 3, 3)),
    "rem.s32": one("rem.s32 %r3, %r1, %r2;", "r1 r2", "r3", (-7, 2, -1), (MIN32, -1, 0), (7, -2, 1)),
    "rem.u64": one("rem.u64 %rd3, %rd1, %rd2;", "rd1 rd2", "rd3", (-1, 10, 5)),
    "min.s32": one("min.s32 %r3, %r1, %r2;", "r1 r2", "r3", (-1, 1, -1), (3, 2, 2)),
    "min.u32": one("min.u32 %r3, %r1, %r2;", "r1 r2", "r3", (-1, 1, 1)),
    "min.s64": one("min.s64 %rd2, %rd1, 8192;", "rd1", "rd2", (-1, -1), (9000, 8192)),
    "max.s32": one("max.s32 %r3, %r1, %r2;", "r1 r2", "r3", (-1, 1, 1)),
    "max.u64": one("max.u64 %rd3, %rd1, %rd2;", "rd1 rd2", "rd3", (-1, 1, -1)),
    "max.s16": one("max.s16 %rs3, %rs1, %rs2;", "rs1 rs2", "rs3", (0x8000, 1, 1)),
    "neg.s32": one("neg.s32 %r2, %r1;", "r1", "r2", (MIN32, MIN32), (5, -5)),
    "abs.s32": one("abs.s32 %r2, %r1;", "r1", "r2", (MIN32, MIN32), (-5, 5)),
    "abs.s64": one("abs.s64 %rd2, %rd1;", "rd1", "rd2", (MIN64, MIN64), (-5, 5)),
    # Bits.
    "logic": Case(
        "and.b32 %r3, %r1, %r2; or.b32 %r4, %r1, %r2; xor.b32 %r5, %r1, %r2; not.b32 %r6, %r1;",
        "r1 r2",
        "r3 r4 r5 r6",
        [((0b1100, 0b1010), (0b1000, 0b1110, 0b0110, ~0b1100))],
    ),
    "not.b16": one("not.b16 %rs2, %rs1;", "rs1", "rs2", (0x00FF, 0xFF00)),
    "shl.b32": one("shl.b32 %r3, %r1, %r2;", "r1 r2", "r3", (1, 31, 1 << 31), (1, 32, 0), (1, 33, 0), (1, -1, 0)),
    "shl.b64": one("shl.b64 %rd2, %rd1, %r1;", "rd1 r1", "rd2", (3, 63, 1 << 63), (1, 64, 0), (1, 65, 0)),
    "shl.b16": one("shl.b16 %rs2, %rs1, %r1;", "rs1 r1", "rs2", (3, 15, 1 << 15), (1, 16, 0), (1, 99, 0)),
    "shr.u32": one("shr.u32 %r3, %r1, %r2;", "r1 r2", "r3", (-1, 28, 15), (-1, 32, 0), (-1, 64, 0)),
    "shr.s32": one("shr.s32 %r3, %r1, %r2;", "r1 r2", "r3", (-8, 1, -4), (-1, 32, -1), (5, 40, 0), (MIN32, 31, -1)),
    "shr.s64": one("shr.s64 %rd2, %rd1, %r1;", "rd1 r1", "rd2", (-8, 1, -4), (MIN64, 64, -1), (5, 64, 0)),
    "shr.s16": one("shr.s16 %rs2, %rs1, %r1;", "rs1 r1", "rs2", (0x8000, 15, 0xFFFF), (0x8000, 16, 0xFFFF)),
    "shr.u64": one("shr.u64 %rd2, %rd1, %r1;", "rd1 r1", "rd2", (-1, 63, 1), (-1, 64, 0)),
    "shf.l.wrap": one("shf.l.wrap.b32 %r4, %r1, %r2, %r3;", "r1 r2 r3", "r4", (0xF0000000, 1, 4, 0x1F), (7, 9, 32, 9)),
    "shf.r.wrap": one("shf.r.wrap.b32 %r4, %r1, %r2, %r3;", "r1 r2 r3", "r4", (0xF0, 1, 4, 0x1000000F), (7, 9, 32, 7)),
    "shf.l.clamp": one("shf.l.clamp.b32 %r4, %r1, %r2, %r3;", "r1 r2 r3", "r4", (7, 9, 32, 7), (7, 9, 99, 7)),
    "shf.r.clamp": one("shf.r.clamp.b32 %r4, %r1, %r2, %r3;", "r1 r2 r3", "r4", (7, 9, 32, 9), (7, 9, 99, 9)),
    "bfe.u32": one(
        "bfe.u32 %r4, %r1, %r2, %r3;",
        "r1 r2 r3",
        "r4",
        (0xABCD1234, 16, 8, 0xCD),
        (0xABCD1234, 28, 8, 0xA),
        (-1, 0, 32, -1),
        (-1, 5, 0, 0),
        (-1, 32, 4, 0),
        (0xABCD1234, 0x110, 0x108, 0xCD),
    ),
    "bfe.s32": one(
        "bfe.s32 %r4, %r1, %r2, %r3;",
        "r1 r2 r3",
        "r4",
        (0x00008000, 8, 8, -128),
        (0x00007F00, 8, 8, 127),
        (MIN32, 30, 9, -2),
        (MIN32, 40, 3, -1),
        (-1, 0, 0, 0),
    ),
    "bfe.u64": one("bfe.u64 %rd2, %rd1, %r2, %r3;", "rd1 r2 r3", "rd2", (-1, 60, 8, 15), (0xFF << 40, 44, 20, 0xF)),
    "bfi.b32": one(
        "bfi.b32 %r5, %r1, %r2, %r3, %r4;",
        "r1 r2 r3 r4",
        "r5",
        (0xFF, 0, 8, 4, 0xF00),
        (0, -1, 28, 99, 0x0FFFFFFF),
        (5, 7, 32, 4, 7),
        (5, 7, 0, 0, 7),
        (9, 7, 0, 32, 9),
    ),
    "bfi.b64": one("bfi.b64 %rd3, %rd1, %rd2, 32, 32;", "rd1 rd2", "rd3", (5, 6, 5 << 32 | 6)),
    "prmt.b32": one(
        "prmt.b32 %r4, %r1, %r2, %r3;",
        "r1 r2 r3",
        "r4",
        (0x33221100, 0x77665544, 0x3210, 0x33221100),
        (0x33221100, 0x77665544, 0x7654, 0x77665544),
        (0x33221180, 0x77665544, 0x08F9, 0x80FF0000 | 0x0000),
        (0x33221100, 0x77665544, 0x5410, 0x55441100),
    ),
    "prmt.b32 with a constant": one(
        "prmt.b32 %r3, %r1, %r2, 0x5410U;", "r1 r2", "r3", (0xAAAABBBB, 0xCCCCDDDD, 0xDDDDBBBB)
    ),
    "lop3.b32": one("lop3.b32 %r4, %r1, %r2, %r3, 0x1A;", "r1 r2 r3", "r4", (0xF0, 0xCC, 0xAA, 0x1A)),
    # Comparisons.
    "setp.lt.s32": one("setp.lt.s32 %p1, %r1, %r2;", "r1 r2", "p1", (-1, 0, 1), (0, -1, 0), (3, 3, 0)),
    "setp.lt.u32": one("setp.lt.u32 %p1, %r1, %r2;", "r1 r2", "p1", (-1, 0, 0), (0, -1, 1)),
    "setp.lo.u32": one("setp.lo.u32 %p1, %r1, %r2;", "r1 r2", "p1", (-1, 0, 0), (0, -1, 1), (1, 1, 0)),
    "setp.hs.u64": one("setp.hs.u64 %p1, %rd1, %rd2;", "rd1 rd2", "p1", (-1, 0, 1), (0, -1, 0), (1, 1, 1)),
    "setp.gt.s64": one("setp.gt.s64 %p1, %rd1, -1;", "rd1", "p1", (-1, 0), (0, 1), (MIN64, 0)),
    "setp.ge.s16": one("setp.ge.s16 %p1, %rs1, %rs2;", "rs1 rs2", "p1", (0x8000, 0, 0), (0, 0x8000, 1)),
    "setp.gt.u16": one("setp.gt.u16 %p1, %rs1, %rs2;", "rs1 rs2", "p1", (0x8000, 0, 1), (0, 0x8000, 0)),
    "setp.eq.b32": one("setp.eq.b32 %p1, %r1, -1;", "r1", "p1", (0xFFFFFFFF, 1), (0, 0)),
    "setp.ne.s64": one("setp.ne.s64 %p1, %rd1, 0;", "rd1", "p1", (1 << 40, 1), (0, 0)),
    "setp of floats": Case(
        " ".join(
            f"setp.{compare}.f32 %p{i}, %f1, %f2;"
            for i, compare in enumerate(["eq", "ne", "lt", "le", "gt", "ge", "num", "nan"])
        ),
        "f1 f2",
        "p0 p1 p2 p3 p4 p5 p6 p7",
        [
            ((1.0, 2.0), (0, 1, 1, 1, 0, 0, 1, 0)),
            ((2.0, 1.0), (0, 1, 0, 0, 1, 1, 1, 0)),
            ((0.0, -0.0), (1, 0, 0, 1, 0, 1, 1, 0)),
            ((NAN, 1.0), (0, 0, 0, 0, 0, 0, 0, 1)),
            ((1.0, NAN), (0, 0, 0, 0, 0, 0, 0, 1)),
            ((INF, INF), (1, 0, 0, 1, 0, 1, 1, 0)),
        ],
    ),
    "setp of floats, true on a NaN": Case(
        " ".join(
            f"setp.{compare}.f64 %p{i}, %fd1, %fd2;"
            for i, compare in enumerate(["equ", "neu", "ltu", "leu", "gtu", "geu"])
        ),
        "fd1 fd2",
        "p0 p1 p2 p3 p4 p5",
        [
            ((1.0, 2.0), (0, 1, 1, 1, 0, 0)),
            ((2.0, 1.0), (0, 1, 0, 0, 1, 1)),
            ((0.0, -0.0), (1, 0, 0, 1, 0, 1)),
            ((NAN, 1.0), (1, 1, 1, 1, 1, 1)),
            ((NAN, NAN), (1, 1, 1, 1, 1, 1)),
        ],
    ),
    "setp with a third predicate": Case(
        "setp.lt.and.s32 %p2, %r1, %r2, %p1; setp.lt.or.s32 %p3, %r1, %r2, !%p1; setp.lt.xor.s32 %p4, %r1, %r2, %p1;",
        "r1 r2 p1",
        "p2 p3 p4",
        [((1, 2, 1), (1, 1, 0)), ((1, 2, 0), (0, 1, 1)), ((2, 1, 1), (0, 0, 1)), ((2, 1, 0), (0, 1, 0))],
    ),
    "setp of two predicates": Case(
        "setp.eq.s32 %p1|%p2, %r1, 0; setp.eq.and.s32 %p3|%p4, %r1, 0, %p1; setp.eq.or.s32 _|%p5, %r1, 0, %p2;",
        "r1",
        "p1 p2 p3 p4 p5",
        [((0,), (1, 0, 1, 0, 0)), ((1,), (0, 1, 0, 0, 1))],
    ),
    "predicates": Case(
        "and.pred %p3, %p1, %p2; or.pred %p4, %p1, %p2; xor.pred %p5, %p1, %p2; not.pred %p6, %p1;"
        "mov.pred %p7, %p2; mov.pred %p8, 0; mov.pred %p9, -1;",
        "p1 p2",
        "p3 p4 p5 p6 p7 p8 p9",
        [((1, 0), (0, 1, 1, 0, 0, 0, 1)), ((1, 1), (1, 1, 0, 0, 1, 0, 1)), ((0, 0), (0, 0, 0, 1, 0, 0, 1))],
    ),
    "selp": Case(
        "selp.b32 %r3, %r1, -1, %p1; selp.f32 %f3, %f1, 0f7FC00001, %p1; selp.u16 %rs1, 1, 0, %p1;",
        "r1 f1 p1",
        "r3 f3 rs1",
        [((7, 1.5, 1), (7, 1.5, 1)), ((7, 1.5, 0), (-1, NAN, 0))],
    ),
    # Floats.
    "arithmetic of f32": Case(
        "add.rn.f32 %f3, %f1, %f2; sub.rn.f32 %f4, %f1, %f2; mul.rn.f32 %f5, %f1, %f2; div.rn.f32 %f6, %f1, %f2;",
        "f1 f2",
        "f3 f4 f5 f6",
        [
            ((1.0, 3.0), (4.0, -2.0, 3.0, struct.unpack("f", struct.pack("f", 1 / 3))[0])),
            ((1.0, 2.0**-25), (1.0, 1.0, 2.0**-25, 2.0**25)),
            ((TINY, 2.0), (2.0, -2.0, 2 * TINY, 0.0)),  # subnormals stay
            ((INF, INF), (INF, NAN, INF, NAN)),
        ],
    ),
    "arithmetic of f64": Case(
        "add.rn.f64 %fd3, %fd1, %fd2; sub.rn.f64 %fd4, %fd1, %fd2; mul.rn.f64 %fd5, %fd1, %fd2;"
        "div.rn.f64 %fd6, %fd1, %fd2; rcp.rn.f64 %fd7, %fd2;",
        "fd1 fd2",
        "fd3 fd4 fd5 fd6 fd7",
        [((0.1, 0.3), (0.1 + 0.3, 0.1 - 0.3, 0.1 * 0.3, 0.1 / 0.3, 1 / 0.3))],
    ),
    # The last bit of the product is in the result if it is rounded once, and not if it is rounded twice.
    "fma.rn.f32": one(
        "fma.rn.f32 %f4, %f1, %f2, %f3;",
        "f1 f2 f3",
        "f4",
        (1 + 2.0**-23, 1 + 2.0**-23, -(1 + 2.0**-22), 2.0**-46),
        (2.0, 3.0, 4.0, 10.0),
    ),
    "mul and sub are not contracted": one(
        "mul.rn.f32 %f4, %f1, %f2; sub.rn.f32 %f5, %f4, %f3;",
        "f1 f2 f3",
        "f5",
        (1 + 2.0**-23, 1 + 2.0**-23, 1 + 2.0**-22, 0.0),
    ),
    "fma.rn.f64": one(
        "fma.rn.f64 %fd3, %fd1, %fd1, %fd2;", "fd1 fd2", "fd3", (1 + 2.0**-52, -(1 + 2.0**-51), 2.0**-104)
    ),
    "sqrt.rn": Case(
        "sqrt.rn.f64 %fd2, %fd1; sqrt.rn.f32 %f2, %f1;",
        "fd1 f1",
        "fd2 f2",
        [((2.0, 4.0), (math.sqrt(2.0), 2.0)), ((-0.0, -1.0), (-0.0, NAN)), ((INF, TINY * 2), (INF, 2.0**-74))],
    ),
    "rcp.rn.f32": one("rcp.rn.f32 %f2, %f1;", "f1", "f2", (4.0, 0.25), (-0.0, -INF)),
    "neg and abs": Case(
        "neg.f32 %f2, %f1; abs.f32 %f3, %f1; neg.f64 %fd2, %fd1; abs.f64 %fd3, %fd1;",
        "f1 fd1",
        "f2 f3 fd2 fd3",
        [((-0.0, -2.0), (0.0, 0.0, 2.0, 2.0)), ((3.0, 0.0), (-3.0, 3.0, -0.0, 0.0))],
    ),
    "copysign": one("copysign.f32 %f3, %f1, %f2;", "f1 f2", "f3", (-0.0, 3.0, -3.0), (1.0, -3.0, 3.0)),
    "min and max of f32": Case(
        "min.f32 %f3, %f1, %f2; max.f32 %f4, %f1, %f2;",
        "f1 f2",
        "f3 f4",
        [
            ((1.0, 2.0), (1.0, 2.0)),
            ((NAN, 2.0), (2.0, 2.0)),
            ((1.0, NAN), (1.0, 1.0)),
            ((NAN, NAN), (NAN, NAN)),
            ((0.0, -0.0), (-0.0, 0.0)),
            ((-0.0, 0.0), (-0.0, 0.0)),
        ],
    ),
    # Moves and conversions.
    "mov": Case(
        "mov.u32 %r2, %r1; mov.b64 %rd2, %rd1; mov.f64 %fd1, 0d3FF8000000000000; mov.b32 %r3, %f1; mov.u16 %rs1, -1;",
        "r1 rd1 f1",
        "r2 rd2 fd1 r3 rs1",
        [((-5, MIN64, 1.0), (-5, MIN64, 1.5, 0x3F800000, 0xFFFF))],
    ),
    "mov of halves": Case(
        "mov.b32 {%rs1, %rs2}, %r1; mov.b32 %r2, {%rs2, %rs1}; mov.b64 %rd1, {%r1, %r2}; mov.b64 {_, %r3}, %rd1;"
        "mov.b64 {%rs3, %rs4, %rs5, %rs6}, %rd1;",
        "r1",
        "rs1 rs2 r2 rd1 r3 rs3 rs6",
        [((0xABCD1234,), (0x1234, 0xABCD, 0x1234ABCD, 0x1234ABCDABCD1234, 0x1234ABCD, 0x1234, 0x1234))],
    ),
    "registers of a scope": Case(
        "{ .reg .b16 tmp; mov.b32 {tmp, %rs1}, %r1; }"
        "{ .reg .b16 tmp; mov.b32 {%rs2, tmp}, %r1; add.s16 %rs3, tmp, 1; }",
        "r1",
        "rs1 rs2 rs3",
        [((0xABCD1234,), (0xABCD, 0x1234, 0xABCE))],
    ),
    "cvt between integers": Case(
        "cvt.s64.s32 %rd1, %r1; cvt.u64.u32 %rd2, %r1; cvt.u32.u64 %r2, %rd1; cvt.u16.u32 %rs1, %r1;"
        "cvt.s32.s16 %r3, %rs1; cvt.u32.u16 %r4, %rs1; cvt.s32.s8 %r5, %r1; cvt.u32.u8 %r6, %r1;"
        "cvt.s16.s8 %rs2, %rs1;",
        "r1",
        "rd1 rd2 r2 rs1 r3 r4 r5 r6 rs2",
        [
            ((-2,), (-2, 2**32 - 2, -2, 0xFFFE, -2, 0xFFFE, -2, 0xFE, 0xFFFE)),
            ((0x12348001,), (0x12348001, 0x12348001, 0x12348001, 0x8001, -0x7FFF, 0x8001, 1, 1, 1)),
        ],
    ),
    "cvt.rzi.s32.f32": one(
        "cvt.rzi.s32.f32 %r1, %f1;",
        "f1",
        "r1",
        (-1.9, -1),
        (1.9, 1),
        (2.0**31, MAX32),
        (-(2.0**31), MIN32),
        (-3e9, MIN32),
        (INF, MAX32),
        (NAN, 0),
    ),
    "cvt.rzi.u32.f32": one("cvt.rzi.u32.f32 %r1, %f1;", "f1", "r1", (-1.0, 0), (-0.5, 0), (3e9, 3 * 10**9), (5e9, -1)),
    "cvt.rzi.u64.f64": one(
        "cvt.rzi.u64.f64 %rd1, %fd1;",
        "fd1",
        "rd1",
        (2.0**63, 1 << 63),
        (2.0**64, 2**64 - 1),
        (-1.0, 0),
        (1e6 + 0.7, 10**6),
        (NAN, 1 << 63),
    ),
    "cvt.rzi.s64.f32": one("cvt.rzi.s64.f32 %rd1, %f1;", "f1", "rd1", (NAN, MIN64), (2.0**63, MAX64), (-2.5, -2)),
    "cvt.rzi.s32.f64": one(
        "cvt.rzi.s32.f64 %r1, %fd1;", "fd1", "r1", (NAN, MIN32), (2147483647.5, MAX32), (-9e9, MIN32)
    ),
    "cvt of other roundings": Case(
        "cvt.rni.s32.f32 %r1, %f1; cvt.rmi.s32.f32 %r2, %f1; cvt.rpi.s32.f32 %r3, %f1; cvt.rzi.f32.f32 %f2, %f1;",
        "f1",
        "r1 r2 r3 f2",
        [((2.5,), (2, 2, 3, 2.0)), ((-2.5,), (-2, -3, -2, -2.0)), ((3.5,), (4, 3, 4, 3.0))],
    ),
    "cvt to floats": Case(
        "cvt.rn.f32.s32 %f1, %r1; cvt.rn.f32.u32 %f2, %r1; cvt.rn.f64.u64 %fd1, %rd1; cvt.rn.f32.u64 %f3, %rd1;",
        "r1 rd1",
        "f1 f2 fd1 f3",
        [
            ((-1, 2**64 - 1), (-1.0, 2.0**32, 2.0**64, 2.0**64)),
            ((16777217, 2**63 + 1025), (2.0**24, 2.0**24, 2.0**63 + 2048, 2.0**63)),
        ],
    ),
    "cvt between floats": Case(
        "cvt.f64.f32 %fd2, %f1; cvt.rn.f32.f64 %f2, %fd1;",
        "f1 fd1",
        "fd2 f2",
        [((TINY, 1 + 2.0**-24), (TINY, 1.0)), ((INF, 1e300), (INF, INF)), ((NAN, TINY * 1.5), (NAN, TINY * 2))],
    ),
    "cvt of pairs": Case(
        "cvt.rn.f16x2.f32 %r1, %f1, %f2; cvt.rn.bf16x2.f32 %r2, %f1, %f2;",
        "f1 f2",
        "r1 r2",
        [((1.0, -2.0), (0x3C00C000, 0x3F80C000)), ((1 + 2.0**-11, 1 + 2.0**-8), (0x3C003C04, 0x3F803F80))],
    ),
    "cvt of f16": Case(
        "cvt.rn.f16.f32 %rs1, %f1; cvt.f32.f16 %f2, %rs1; cvt.rn.bf16.f32 %rs2, %f1; cvt.f32.bf16 %f3, %rs2;",
        "f1",
        "rs1 f2 rs2 f3",
        [
            ((1.0,), (0x3C00, 1.0, 0x3F80, 1.0)),
            ((-65520.0,), (0xFC00, -INF, 0xC780, -65536.0)),
            ((65519.0,), (0x7BFF, 65504.0, 0x4780, 65536.0)),
            ((NAN,), (0x7FFF, NAN, 0x7FFF, NAN)),
            ((-0.0,), (0x8000, -0.0, 0x8000, -0.0)),
            ((1 + 2.0**-8,), (0x3C04, 1 + 2.0**-8, 0x3F80, 1.0)),
            ((1 + 3 * 2.0**-8,), (0x3C0C, 1 + 3 * 2.0**-8, 0x3F82, 1 + 2.0**-6)),
        ],
    ),
    # Memory.
    "loads extend": Case(
        "ld.global.s8 %r1, [%in+1]; ld.global.u8 %rs1, [%in+1]; ld.s16 %r2, [%in]; ld.global.u16 %r3, [%in];"
        "ld.global.s32 %rd1, [%in+8];",
        "rd2 rd3",
        "r1 rs1 r2 r3 rd1",
        [((0x8001, 0x80000000), (-128, 0x80, -0x7FFF, 0x8001, MIN32))],
    ),
    "vectors": Case(
        "ld.global.v2.u64 {%rd1, %rd2}, [%in]; st.v4.b32 [%out+16], {%r1, 7, %r1, %r1};"
        "ld.v2.u32 {_, %r2}, [%out+16]; ld.global.v4.u8 {%rs1, %rs2, %rs3, %rs4}, [%in+8];",
        "rd3 r1",
        "rd1 r2 rs1 rs4",
        [((99, 0x04030201), (99, 7, 1, 4))],
    ),
    "an address below": one("add.s64 %rd1, %in, 64; ld.global.u32 %r1, [%rd1+-56];", "rd2 rd3", "r1", (1, 2, 2)),
    "parameters": Case(
        "ld.param.v2.u64 {%rd1, %rd2}, [launch+16]; mov.b64 %rd3, launch; mul.wide.s32 %rd4, %r1, 8;"
        "add.s64 %rd5, %rd3, %rd4; ld.param.u64 %rd6, [%rd5+16]; cvta.param.u64 %rd7, launch; ld.u64 %rd8, [%rd7+40];",
        "r1",
        "rd1 rd2 rd6 rd8",
        [((2,), (10, 11, 12, 13)), ((3,), (10, 11, 13, 13))],
    ),
    "shared memory": Case(
        ".shared .align 4 .b8 first[12]; .shared .align 16 .b8 second[32]; .shared .align 1 .u8 third;"
        "st.shared.u32 [first+8], %r1; mov.u32 %r2, second; st.shared.v2.u64 [%r2+16], {%rd1, %rd1};"
        "ld.shared.u64 %rd2, [second+24]; mov.u32 %r3, first; ld.shared.u32 %r4, [%r3+8]; cvta.shared.u64 %rd3, second;"
        "ld.u64 %rd4, [%rd3+16]; cvta.to.shared.u64 %rd5, %rd3; ld.shared.u64 %rd6, [%rd5+16]; cvt.u64.u32 %rd7, %r3;"
        "cvta.shared.u64 %rd8, %rd7; ld.u32 %r5, [%rd8+8]; ld.shared.u8 %rs1, [third];"
        "isspacep.shared %p1, %rd3; isspacep.global %p2, %rd3; isspacep.shared %p3, %in; isspacep.global %p4, %in;",
        "r1 rd1",
        "rd2 r4 rd4 rd6 r5 r2 rs1 p1 p2 p3 p4",
        [((5, 6), (6, 5, 6, 6, 5, 16, 0xFF, 1, 0, 0, 1))],
    ),
    "atom": Case(
        "st.global.u32 [%out], %r1; st.global.u64 [%out+8], %rd1;"
        "atom.global.inc.u32 %r2, [%out], 3; ld.global.u32 %r3, [%out]; atom.global.dec.u32 %r4, [%out], 9;"
        "ld.global.u32 %r5, [%out]; atom.add.u64 %rd2, [%out+8], -1; ld.global.u64 %rd3, [%out+8];"
        "atom.global.max.s32 %r6, [%out], -1; atom.relaxed.gpu.global.exch.b32 %r7, [%out], 77;"
        "ld.global.u32 %r8, [%out];",
        "r1 rd1",
        "r2 r3 r4 r5 rd2 rd3 r6 r7 r8",
        [
            ((2, 0), (2, 3, 3, 2, 0, -1, 2, 2, 77)),
            ((3, 5), (3, 0, 0, 9, 5, 4, 9, 9, 77)),
            ((-1, 1), (-1, 0, 0, 9, 1, 0, 9, 9, 77)),
        ],
    ),
    # Control.
    "guards and branches": Case(
        "mov.u32 %r2, 0; @%p1 add.s32 %r2, %r2, 1; @!%p1 add.s32 %r2, %r2, 2; @!%p1 bra $L_end; mov.u32 %r3, 0;\n"
        "$L_loop:\nadd.s32 %r2, %r2, 10; add.s32 %r3, %r3, 1; setp.lt.s32 %p2, %r3, %r1; @%p2 bra $L_loop;\n"
        "bra.uni $L_end; mov.u32 %r2, 99;\n$L_end:\n",
        "p1 r1",
        "r2",
        [((1, 3), (31,)), ((0, 3), (2,))],
    ),
    "division by zero": one("div.s32 %r3, %r1, %r2;", "r1 r2", "r3", (1, 0, "fault: division by zero")),
}

# Kernels of many threads, of which two blocks run.
GRID = {
    # Thread t of block b adds t into a shared number of the one that follows it, behind a barrier, and writes it.
    "barrier": (
        4,
        ".shared .align 4 .b8 numbers[16]; mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 2; mov.u32 %r3, numbers;"
        "add.s32 %r4, %r3, %r2; st.shared.u32 [%r4], %r1; bar.sync 0; xor.b32 %r2, %r2, 4; add.s32 %r4, %r3, %r2;"
        "ld.shared.u32 %r5, [%r4]; mov.u32 %r6, %ctaid.x; mov.u32 %r7, %ntid.x; mad.lo.s32 %r8, %r6, %r7, %r1;"
        "mul.wide.u32 %rd1, %r8, 8; add.s64 %rd1, %out, %rd1; cvt.u64.u32 %rd2, %r5; st.global.u64 [%rd1], %rd2;"
        "barrier.sync 0;",
        [1, 0, 3, 2, 1, 0, 3, 2],
    ),
    "ticket": (
        4,
        "membar.gl; atom.global.inc.u32 %r1, [%in], 7; fence.acq_rel.gpu; mul.wide.u32 %rd1, %r1, 8;"
        "add.s64 %rd1, %out, %rd1; mov.u32 %r2, %nctaid.x; cvt.u64.u32 %rd2, %r2; st.global.u64 [%rd1], %rd2;",
        [2] * 8,
    ),
    # Thread t of a warp has t: what its neighbour has, and 16 times the most that any has.
    "warp": (
        4,
        "mov.u32 %r1, %tid.x; shfl.sync.bfly.b32 %r2|%p1, %r1, 1, 31, -1; redux.sync.max.u32 %r3, %r1, 0xffffffff;"
        "bar.warp.sync -1; shfl.sync.bfly.b32 %r4, %r3, 2, 31, -1; mad.lo.s32 %r5, %r4, 16, %r2; mov.u32 %r6, %ctaid.x;"
        "mad.lo.s32 %r7, %r6, 4, %r1; mul.wide.u32 %rd1, %r7, 8; add.s64 %rd1, %out, %rd1; @!%p1 add.s32 %r5, %r5, 99;"
        "cvt.u64.u32 %rd2, %r5; st.global.u64 [%rd1], %rd2;",
        [49, 48, 51, 50, 49, 48, 51, 50],
    ),
    "misaligned": (1, "ld.global.v2.u32 {%r1, %r2}, [%in+4];", []),
}
