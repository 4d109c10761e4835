"""Each family of PTX instructions, translated and run, against what the PTX ISA says of it; and what is refused."""

import math
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from building import ARITHMETICS, RULES, of_rule
from ptx_cases import CASES, GRID, MODULE, WIDTHS, kernel, kind
from ptx_parse import PtxError, parse
from ptx_to_cpp import translate

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
NVCC = shutil.which("nvcc")


def to_bits(register: str, value: float | int) -> int:
    if isinstance(value, float):
        return int.from_bytes(struct.pack("<f" if kind(register) == "f" else "<d", value), "little")
    return value % (1 << WIDTHS[kind(register)])


def to_value(register: str, bits: int) -> float | int:
    bits %= 1 << WIDTHS[kind(register)]
    if kind(register) == "f":
        return struct.unpack("<f", bits.to_bytes(4, "little"))[0]
    return struct.unpack("<d", bits.to_bytes(8, "little"))[0] if kind(register) == "fd" else bits


def same(register: str, got: float | int, expected: float | int) -> bool:
    if kind(register) in ("f", "fd"):
        expected = to_value(register, to_bits(register, float(expected)))
        return (got != got and expected != expected) or (
            got == expected and math.copysign(1, got) == math.copysign(1, expected)
        )
    return got == to_bits(register, expected)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("ptx")
    kernels = [case.ptx(f"case_{i}") for i, case in enumerate(CASES.values())]
    kernels += [kernel(name, body) for name, (_, body, _) in GRID.items()]
    (folder / "snippets.cpp").write_text(translate(MODULE + "\n".join(kernels)))
    sources = [
        folder / "snippets.cpp",
        *(HERE / name for name in ("ptx_snippet.cpp", "ptx_kernels.cpp", "runtime.cpp")),
    ]
    flags = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-fno-strict-aliasing"]
    flags += ["-fsanitize=undefined,float-cast-overflow", f"-I{HERE}"]
    subprocess.run([COMPILER, *flags, *map(str, sources), "-o", str(folder / "program")], check=True)
    return folder / "program"


def run(program: Path, name: str, threads: int, rows: list[list[int]]) -> tuple[list[str], str]:
    text = "".join(" ".join(f"{word:x}" for word in row) + "\n" for row in rows)
    command = [str(program), name, str(threads)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize("name", CASES)
def test_instructions(program, name):
    case = CASES[name]
    inputs, outputs = case.inputs.split(), case.outputs.split()
    rows = [[to_bits(*pair) for pair in zip(inputs, row, strict=True)] for row, _ in case.rows]
    lines, errors = run(program, f"case_{list(CASES).index(name)}", 1, rows)
    assert errors == ""
    for line, (row, expected) in zip(lines, case.rows, strict=True):
        if isinstance(expected[0], str):
            assert line == expected[0]
            continue
        words = [int(word, 16) for word in line.split()]
        for i, (register, value) in enumerate(zip(outputs, expected, strict=True)):
            got = to_value(register, words[i])
            assert same(register, got, value), f"%{register} of {row} is {got} and not {value}"


def test_threads_of_a_grid(program):
    for name in ("barrier", "ticket", "warp"):
        threads, _, expected = GRID[name]
        lines, errors = run(program, name, threads, [[0, 0]])
        assert errors == ""
        assert [int(word, 16) for word in lines[0].split()[:8]] == expected


def test_misaligned_access_is_seen(program):
    _, errors = run(program, "misaligned", 1, [[0, 0]])
    assert "misaligned address" in errors


def half(value: float) -> int:
    try:
        return int.from_bytes(struct.pack("<e", value), "little")
    except OverflowError:
        return 0x7C00 if value > 0 else 0xFC00


def test_f16_and_what_rounds_to_it(program):
    # A number rounds to this one or to the next one at their middle. All exponents, and some of the fractions.
    singles = []
    for bits in [bits for bits in range(0x7C00) if bits % 16 == 5 or bits & 0x3FF in (0, 1, 2, 0x3FE, 0x3FF)]:
        low = struct.unpack("<e", bits.to_bytes(2, "little"))[0]
        high = struct.unpack("<e", (bits + 1).to_bytes(2, "little"))[0] if bits < 0x7BFF else 65536.0
        middle = to_bits("f1", (low + high) / 2)
        singles += [to_bits("f1", low), middle - 1, middle, middle + 1]
    singles += [single | 1 << 31 for single in singles]
    number = list(CASES).index("cvt of f16")
    lines, errors = run(program, f"case_{number}", 1, [[single] for single in singles])
    assert errors == ""
    for single, line in zip(singles, lines, strict=True):
        narrow, wide = (int(word, 16) for word in line.split()[:2])
        expected = half(to_value("f1", single))
        assert narrow & 0xFFFF == expected, hex(single)
        assert to_value("f2", wide) == struct.unpack("<e", expected.to_bytes(2, "little"))[0], hex(single)


REFUSED = {
    # Not IEEE, or not rounded to the nearest.
    "div.approx.f32 %f1, %f2, %f3;": "unknown instruction",
    "div.full.f32 %f1, %f2, %f3;": "unknown instruction",
    "sqrt.approx.ftz.f32 %f1, %f2;": "unknown instruction",
    "add.rn.ftz.f32 %f1, %f2, %f3;": "unknown instruction",
    "add.rz.f32 %f1, %f2, %f3;": "unknown instruction",
    "add.rn.sat.f32 %f1, %f2, %f3;": "unknown instruction",
    "setp.lt.ftz.f32 %p1, %f2, %f3;": "unknown instruction",
    "cvt.rn.ftz.f32.f64 %f1, %fd3;": "unknown instruction",
    "cvt.rz.f32.f64 %f1, %fd3;": "unknown instruction",
    "cvt.rni.f32.f64 %f1, %fd3;": "unknown conversion",
    "ex2.approx.f32 %f1, %f2;": "unknown instruction",
    # What ptxas may turn into an fma.
    "add.f32 %f1, %f2, %f3;": "unknown instruction",
    "mul.f32 %f1, %f2, %f3;": "unknown instruction",
    "sub.f64 %fd1, %fd2, %fd3;": "unknown instruction",
    "mad.f32 %f1, %f2, %f3, %f4;": "unknown instruction",
    # Instructions and modifiers.
    "frobnicate.u32 %r1, %r2;": "unknown instruction",
    "add.sat.s32 %r1, %r2, %r3;": "unknown instruction",
    "cvt.sat.u8.s32 %r1, %r2;": "unknown instruction",
    "prmt.b32.f4e %r1, %r2, %r3, %r4;": "unknown instruction",
    "atom.global.add.f32 %f1, [%rd1], %f2;": "unknown instruction",
    "atom.cta.global.inc.u32 %r1, [%rd1], %r2;": "unknown instruction",
    "membar.cta;": "unknown instruction",
    "ld.volatile.global.u32 %r1, [%rd1];": "unknown instruction",
    "ld.global.nc.f32 %f1, [%rd1];": "unknown instruction",
    "shfl.sync.up.b32 %r1, %r2, 1, 31, -1;": "unknown instruction",
    "shfl.sync.bfly.b32 %r1, %r2, 1, 15, -1;": "not of all lanes",
    "shfl.sync.bfly.b32 %r1, %r2, 1, 31, 15;": "not of all threads of a warp",
    "redux.sync.max.u32 %r1, %r2, %r3;": "not of all threads of a warp",
    "redux.sync.add.u32 %r1, %r2, -1;": "unknown instruction",
    "bar.warp.sync 15;": "not of all threads of a warp",
    "cvt.rz.bf16x2.f32 %r1, %f1, %f2;": "unknown instruction",
    "call foo;": "unknown instruction",
    "bar.sync 1;": "unknown barrier",
    "bar.sync 0, 64;": "wrong number of operands",
    "add.s32 %r1, %r2;": "wrong number of operands",
    "setp.lo.s32 %p1, %r1, %r2;": "unknown comparison",
    "setp.lt.b32 %p1, %r1, %r2;": "unknown comparison",
    "setp.lt.and.s32 %p1, %r1, %r2;": "wrong number of operands",
    # State spaces.
    ".local .align 8 .b8 depot[16];": "unknown directive",
    "ld.local.u32 %r1, [%rd1];": "unknown instruction",
    "st.local.u32 [%rd1], %r1;": "unknown instruction",
    "st.param.u32 [launch], %r1;": "unknown instruction",
    "isspacep.local %p1, %rd1;": "unknown instruction",
    "ld.const.u32 %r1, [%rd1];": "unknown instruction",
    # Operands.
    "mov.u32 %r1, %laneid;": "unknown register %laneid",
    "mov.u64 %rd1, %clock64;": "unknown register %clock64",
    "add.s32 %r1, %r2, %r77;": "unknown register %r77",
    "add.s32 %r1, %r2, %rd3;": "register %rd3 of type b64 as u32",
    "add.s32 %r1, %r2, %f3;": "register %f3 of type f32 as u32",
    "add.s32 %r1, %r2, 4294967296;": "constant 4294967296",
    "add.s32 %r1, %r2, 010;": "unknown register 010",
    "add.rn.f32 %f1, %f2, 1;": "constant 1 as f32",
    "add.rn.f64 %fd1, %fd2, 0f3F800000;": "constant 0f3F800000",
    "ld.global.u64 %r1, [%rd1];": "register %r1 of type b32 as u64",
    "ld.global.u32 %r1, [%r2];": "unknown address",
    "ld.global.u32 %r1, [nowhere];": "unknown address",
    "ld.global.v2.u32 %r1, [%rd1];": "unknown vector",
    "ld.global.v2.u32 {%r1, %r2, %r3}, [%rd1];": "unknown vector",
    "ld.global.v4.u64 {%rd1, %rd2, %rd3, %rd4}, [%rd1];": "unknown vector",
    "bra $L_nowhere;": "unknown label",
    # Directives.
    '.pragma "frobnicate";': "unknown directive",
    ".reg .f16 %h<3>;": "unknown declaration of registers",
    ".shared .align 128 .b8 much[16];": "unknown declaration of shared memory",
}


@pytest.mark.parametrize("statement", REFUSED)
def test_what_is_not_known_is_refused(statement):
    ptx = MODULE + kernel("refused", f"\n{statement}")
    line = ptx[: ptx.index(statement)].count("\n") + 1
    with pytest.raises(PtxError, match=rf"^line {line}: .*{re.escape(REFUSED[statement])}"):
        translate(ptx)


@pytest.mark.parametrize(
    "text",
    [
        ".func foo() { ret; }",
        ".global .align 4 .b8 table[4];",
        ".const .align 4 .b8 table[4];",
        ".extern .shared .align 16 .b8 dynamic[];",
        ".visible .entry k(.param .texref t) { ret; }",
        ".visible .entry k() .maxnreg 32 { ret; }",
        ".visible .entry k() { ret; ",
    ],
)
def test_unknown_parts_of_a_module_are_refused(text):
    with pytest.raises(PtxError, match=r"^line 4: "):
        translate(MODULE + text)


@pytest.mark.parametrize("wrong", [(".address_size 64", ".address_size 32"), ("sm_120", "sm_120, debug")])
def test_other_modules_are_refused(wrong):
    with pytest.raises(PtxError):
        translate(MODULE.replace(*wrong) + kernel("k", ""))


def newest_architecture() -> str:
    listed = subprocess.run([str(NVCC), "--list-gpu-arch"], capture_output=True, text=True, check=True)
    return max(listed.stdout.split(), key=lambda name: int(name.removeprefix("compute_")))


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("architecture", ["compute_75", "newest"])
@pytest.mark.parametrize("name", [*(f"{rule}-{type_}" for rule in RULES for type_ in ARITHMETICS), "zero", "norm"])
def test_all_kernels_translate(architecture, name, tmp_path):
    architecture = newest_architecture() if architecture == "newest" else architecture
    source = ROOT / "csrc" / "cuda" / (f"{name}.cu" if name in ("zero", "norm") else "kernels.cu")
    flags = ["-O3", "-std=c++17", "-fmad=false", "--expt-relaxed-constexpr", f"-I{ROOT / 'csrc'}"]
    rule, _, arithmetic = name.partition("-")
    flags += [*of_rule(rule), f"-DFUSEDOPTIM_ARITHMETIC={arithmetic}", f"-arch={architecture}", "-ptx"]
    subprocess.run([str(NVCC), *flags, str(source), "-o", str(tmp_path / "kernels.ptx")], check=True)
    ptx = (tmp_path / "kernels.ptx").read_text()
    kernels = [one.name for one in parse(ptx)]
    assert len(kernels) == ptx.count(".entry") > 0
    cpp = translate(ptx)
    assert all(f'extern "C" void ptx_{name}(' in cpp for name in kernels)
