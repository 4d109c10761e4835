"""``benchmarks/gate/kernels.py``: slower kernels planted in the source, and what the gate says of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gate import figures as gate_figures
from benchmarks.gate import kernels as gate_kernels

ROOT = Path(__file__).resolve().parent.parent.parent

CXX = os.environ.get("CXX") or "g++"
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
needs_compiler = pytest.mark.skipif(
    shutil.which(CXX) is None or shutil.which("objdump") is None, reason="needs a C++ compiler and objdump"
)
KEY = {"compiler": "gcc 12", "python": "3.11", "torch": "2.13.0", "libc": "glibc 2.36"}
LOOP = gate_kernels.Loop(33, frozenset({"fma", "sqrt"}), 0, 0, 0)


def compile_kernels(folder: Path, *flags: str, edits: tuple[tuple[str, str, str], ...] = ()) -> Any:
    """The gate's figures of the AVX2 kernels for float, compiled from sources with the given edits."""
    source = folder / "csrc"
    shutil.copytree(ROOT / "csrc", source)
    # The other storage types, and mixtures of them, would only make it slow.
    others = (
        (
            "cpu/kernels.cpp",
            "  ((kernels.plain[variants][int(DType::f64)] = Loop<Rule, double, variants>::run), ...);",
            "",
        ),
        ("cpu/kernels.cpp", "if constexpr (kIsUsedMost<Rule>)", "if constexpr (false)"),
        ("cpu/kernels.cpp", "  ((kernels.mixed[variants] = MixedLoop<Rule, variants>::run), ...);", ""),
    )
    for file, old, new in (*others, *edits):
        text = (source / file).read_text()
        assert text.count(old) == 1, f"{old!r} is not there once in {file}"
        (source / file).write_text(text.replace(old, new))
    objects = [folder / f"{rule}.o" for rule in ("Adam", "Sgd")]
    for made in objects:
        rule = (f"-DFUSEDOPTIM_RULE={made.stem}", f'-DFUSEDOPTIM_RULE_HEADER="rules/{made.stem.lower()}.h"')
        command = [CXX, *FLAGS, *flags, *rule, "-DFUSEDOPTIM_ISA=avx2", f"-I{source}", "-c", source / "cpu/kernels.cpp"]
        subprocess.run([*command, "-o", made], check=True, capture_output=True, text=True)
    loops = gate_kernels.measure_kernels(gate_kernels.read_kernels(objects))
    return gate_figures.Figures(KEY, None, loops)


@pytest.fixture(scope="module")
def as_it_is(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return compile_kernels(tmp_path_factory.mktemp("kernels"), *AVX2)


PLANTED = {
    "square roots one by one": (
        AVX2,
        (
            "cpu/simd/vector.h",
            "raw_sqrt(__m256 x) { return _mm256_sqrt_ps(x); }",
            'raw_sqrt(__m256 x) { for (int i = 0; i < 8; ++i) asm("vsqrtss %0, %0, %0" : "+x"(x[i])); return x; }',
        ),
        r"avx2 Adam float 0: its loop has no full-width sqrt any more",
    ),
    "a scalar beside each vector": (
        AVX2,
        (
            "cpu/kernels.cpp",
            "    store(at[0], param);",
            '    asm("vaddss %x0, %x0, %x0" : "+x"(param.raw));\n    store(at[0], param);',
        ),
        r"avx2 Sgd float 1: arithmetic on scalars or narrow registers in the loop rose from 0 to 1",
    ),
    "the flags of another instruction set": (
        (),
        None,
        r"avx2 Sgd float 0: its loop has no full-width fma, mul any more",
    ),
    "vectors that find no register": (
        AVX2,
        (
            "cpu/kernels.cpp",
            "    step.rule.template operator()<variant>(param, grad, state);",
            '    step.rule.template operator()<variant>(param, grad, state);\n    asm volatile("" ::: '
            + ", ".join(f'"xmm{i}"' for i in range(16))
            + ");",
        ),
        r"avx2 Adam float 0: vectors on the stack in the loop rose from 0 to \d+",
    ),
    "the rule twice": (
        AVX2,
        (
            "cpu/kernels.cpp",
            "    step.rule.template operator()<variant>(param, grad, state);",
            "    for (int twice = 0; twice < 2; ++twice) step.rule.template operator()<variant>(param, grad, state);",
        ),
        r"avx2 Adam float 0: instructions in the loop rose from \d+ to \d+ \(\+\d+\.\d%\)",
    ),
}


@needs_compiler
@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_slower_kernel_is_noticed(what: str, as_it_is: Any, tmp_path: Path) -> None:
    flags, edit, message = PLANTED[what]
    slower = compile_kernels(tmp_path, *flags, edits=(edit,) if edit else ())
    failures = list(gate_figures.judge_loops(as_it_is, slower))
    assert any(re.match(message, failure) for failure in failures), failures


@needs_compiler
def test_the_kernels_as_they_are_pass(as_it_is: Any) -> None:
    assert len(as_it_is.loops) > 10
    assert list(gate_figures.judge_loops(as_it_is, as_it_is)) == []
    nothing_known = replace(as_it_is, loops={})
    assert list(gate_figures.judge_loops(nothing_known, as_it_is)) == []


def test_code_is_found_in_a_module_whatever_the_linker_wrote() -> None:
    instruction = gate_kernels.Instruction(0, b"\xe8\x00\x00\x00\x00\xc3\x90\x91", "call", "0 <f>")
    function = gate_kernels.Function([instruction], {1, 2, 3, 4})
    assert gate_kernels.holds(b"....\xe8\x12\x34\x56\x78\xc3\x90\x91....", function)
    assert not gate_kernels.holds(b"....\xe9\x12\x34\x56\x78\xc3\x90\x91....", function)
    assert not gate_kernels.holds(b"\xc3\x90\x91", function)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"instructions": 35}, "instructions in the loop rose from 33 to 35 (+6.1%)"),
        ({"packed": frozenset({"fma"})}, "no full-width sqrt"),
        ({"other": 1}, "scalars or narrow registers in the loop rose from 0 to 1"),
        ({"stack": 1}, "vectors on the stack in the loop rose from 0 to 1"),
        ({"calls": 1}, "calls in the loop rose from 0 to 1"),
    ],
)
def test_what_is_said_of_a_loop(changed: dict[str, Any], message: str) -> None:
    before, now = ({"avx2 Adam float 0": loop} for loop in (LOOP, replace(LOOP, **changed)))
    (failure,) = gate_figures.judge_loops(gate_figures.Figures(KEY, None, before), gate_figures.Figures(KEY, None, now))
    assert message in failure


@pytest.mark.parametrize("loop", [None, replace(LOOP, packed=frozenset()), replace(LOOP, other=8)])
def test_a_new_kernel_must_be_packed(loop: Any) -> None:
    now = gate_figures.Figures(KEY, None, {"avx2 Lion float 0": loop})
    assert len(list(gate_figures.judge_loops(gate_figures.Figures(KEY, None, {}), now))) == 1


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("fusedoptim::avx2::Loop<fusedoptim::Adam, float, 0, false>::run(void const*)", "avx2 Adam float 0"),
        ("fusedoptim::avx2::Loop<fusedoptim::Sgd, fusedoptim::Half, 9, true>::run(int)", "avx2 Sgd Half 9 average"),
        ("fusedoptim::baseline::scale<fusedoptim::BFloat16>(void*)", "baseline scale BFloat16"),
        ("fusedoptim::avx2::Loop<fusedoptim::Adam, float, 0, true>::run(int) [clone .cold]", None),
        ("fusedoptim::avx2::kSet()", None),
    ],
)
def test_names_of_kernels(symbol: str, name: str | None) -> None:
    assert gate_kernels.name_of(symbol) == name
