"""``benchmarks/perf_gate.py``: slower kernels planted in the source, counts that rise, and what is said of them.

Slowdowns planted in Python are measured in each run of the gate itself, which fails if it does not notice them.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("rich", reason="the benchmarks need it")
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    perf_gate, gate_cases, gate_counts, gate_figures, gate_kernels, report = (
        importlib.import_module(name)
        for name in ("perf_gate", "gate_cases", "gate_counts", "gate_figures", "gate_kernels", "report")
    )
finally:
    sys.path.remove(str(ROOT / "benchmarks"))

CXX = os.environ.get("CXX") or "g++"
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
needs_compiler = pytest.mark.skipif(
    shutil.which(CXX) is None or shutil.which("objdump") is None, reason="needs a C++ compiler and objdump"
)
NAME = "direct 400x64 adam avx2 step"
KEY = {"compiler": "gcc 12", "python": "3.11", "torch": "2.13.0", "libc": "glibc 2.36"}
LOOP = gate_kernels.Loop(33, frozenset({"fma", "sqrt"}), 0, 0, 0)


# ---- kernels ------------------------------------------------------------------------------------------------------
def compile_kernels(folder: Path, *flags: str, edits: tuple[tuple[str, str, str], ...] = ()) -> Any:
    """The gate's figures of the AVX2 kernels for float, compiled from sources with the given edits."""
    source = folder / "csrc"
    shutil.copytree(ROOT / "csrc", source)
    # The other storage types would only make it slow.
    others = tuple(
        (
            "cpu/kernels.cpp",
            f"  ((kernels[variants][int(DType::{dtype})] = Loop<Rule, {name}, variants>::run), ...);",
            "",
        )
        for dtype, name in (("f64", "double"), ("bf16", "BFloat16"), ("f16", "Half"))
    )
    for file, old, new in (*others, *edits):
        text = (source / file).read_text()
        assert text.count(old) == 1, f"{old!r} is not there once in {file}"
        (source / file).write_text(text.replace(old, new))
    target = folder / "kernels.o"
    command = [
        CXX,
        *FLAGS,
        *flags,
        "-DFUSEDOPTIM_ISA=avx2",
        f"-I{source}",
        "-c",
        source / "cpu/kernels.cpp",
        "-o",
        target,
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    loops = gate_kernels.measure_kernels(gate_kernels.read_kernels([target]))
    return gate_figures.Figures(KEY, None, loops)


@pytest.fixture(scope="module")
def as_it_is(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return compile_kernels(tmp_path_factory.mktemp("kernels"), *AVX2)


PLANTED = {
    "square roots one by one": (
        AVX2,
        (
            "cpu/simd.h",
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
    "the flags of another instruction set": ((), None, r"avx2 Sgd float 0: its loop has no full-width fma any more"),
    "vectors that find no register": (
        AVX2,
        (
            "cpu/kernels.cpp",
            "    rule.template operator()<variant>(param, grad, state);",
            '    rule.template operator()<variant>(param, grad, state);\n    asm volatile("" ::: '
            + ", ".join(f'"xmm{i}"' for i in range(16))
            + ");",
        ),
        r"avx2 Adam float 0: vectors on the stack in the loop rose from 0 to \d+",
    ),
    "the rule twice": (
        AVX2,
        (
            "cpu/kernels.cpp",
            "    rule.template operator()<variant>(param, grad, state);",
            "    for (int twice = 0; twice < 2; ++twice) rule.template operator()<variant>(param, grad, state);",
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


# ---- counts -------------------------------------------------------------------------------------------------------
def figures(per_tensor: int = 1000, per_element: int = 4, key: dict[str, str] = KEY, **module: int) -> Any:
    counts = {}
    for model in gate_cases.LIMITS:
        shapes = gate_cases.shapes_of(model)
        total = 20_000 + per_tensor * len(shapes) + per_element * sum(map(prod, shapes))
        counts[f"direct {model} adam avx2 step"] = gate_counts.Count(total, module.get("own", 10_000))
    return gate_figures.Figures(key, counts, {})


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (figures(), None),
        (figures(per_tensor=1020), None),
        (
            figures(per_tensor=1100),
            f"{NAME}: instructions per call rose from 522,400 to 562,400 (+7.7%), allowed are +3%",
        ),
        (figures(per_element=5), "direct tutorial-mlp adam avx2 step: instructions per call rose from "),
        (figures(own=11_000), f"{NAME}: the module's own instructions rose from 10,000 to 11,000 (+10.0%)"),
        (replace(figures(), counts={}), f"{NAME}: was not counted"),
        # another Python: totals may differ, but not the module, and no tensor or element may cost far more
        (figures(per_tensor=1100, key={**KEY, "python": "3.14"}), None),
        (figures(own=11_000, key={**KEY, "python": "3.14"}), f"{NAME}: the module's own instructions rose"),
        (figures(own=11_000, key={**KEY, "compiler": "clang 19"}), None),
        (
            figures(per_tensor=1900, key={**KEY, "compiler": "clang 19"}),
            "direct adam avx2 step: instructions per tensor rose from 1,256 to 2,156 (+71.7%)",
        ),
        (
            figures(per_element=7, key={**KEY, "compiler": "clang 19"}),
            "direct adam avx2 step: instructions per element",
        ),
    ],
)
def test_what_is_said_of_a_count(now: Any, message: str | None) -> None:
    failures = list(gate_figures.judge_counts(figures(), now))
    assert failures == [] if message is None else any(failure.startswith(message) for failure in failures), failures


def test_a_dump_is_read() -> None:
    dump = """desc: Trigger: Client Request: direct 4x64 adam avx2 step
ob=(2) /lib/libpython3.11.so
fn=(1) a
16 100
+3 20
cfn=(2) b
cob=(3) /there/fusedoptim/_C.cpython-311.so
calls=1 50
16 4000
ob=(3)
fn=(2)
0 3000
* 900
ob=(4) /tmp/gate_client.so
0 7
totals: 4027
"""
    trigger, costs, total = gate_counts.read_dump(io.StringIO(dump))
    assert trigger == "Client Request: direct 4x64 adam avx2 step"
    assert sum(costs.values()) == total
    assert gate_counts.count_of(costs) == gate_counts.Count(4020 // 2, 3900 // 2)


# ---- the gate -----------------------------------------------------------------------------------------------------
def test_the_figures_are_of_all_that_is_counted(tmp_path: Path) -> None:
    kept = gate_figures.Figures.load()
    names = {case.name for case in gate_cases.cases(planted=False)}
    assert set(kept.counts) == {f"{path} {name}" for path in ("direct", "ordinary") for name in names}
    kept.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == gate_figures.FIGURES.read_text()


def test_a_slowdown_that_goes_unnoticed_fails_the_gate() -> None:
    now, console = figures(), report.make_console()
    label = f"{NAME} {gate_cases.PLANTED}: something slow"
    slow, same = gate_counts.Count(600_000, 10_000), now.counts[NAME]
    assert list(perf_gate.planted_unnoticed(now, {label: slow}, console)) == []
    assert list(perf_gate.planted_unnoticed(now, {label: same}, console)) == ["planted and not noticed: something slow"]


def test_without_valgrind_the_gate_fails_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(perf_gate, "why_not", lambda: "valgrind is not installed")
    assert perf_gate.main([]) == 1
    said = capsys.readouterr().out
    assert "valgrind is not installed" in said
    assert "--without-counts" in said
