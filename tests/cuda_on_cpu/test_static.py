"""What the compiled CUDA code is, shown without a GPU: see machine_code.py. Each check is shown to fail as well."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import machine_code
import pytest
from machine_code import Contents, Kernel, Ptx, Variant

import fusedoptim.native
from fusedoptim import build_info

ROOT = Path(__file__).parent.parent.parent
# By arithmetic: in how many accesses a thread takes an operand, and how many operands there are besides the rule's: the
# companion, as the average is accessed by the same instructions as grad.
OPERANDS = {"f64": (1, 0), "f32": (2, 1)}
LIST_VARIANTS = """
#include <cstdio>
#include <typeinfo>
#include "rules/all.h"
#include "rules/limits.h"

using namespace fusedoptim;

// A state that is read carries NaN on.
template <template <class> class Rule, int variant>
int states_read() {
  Numbers second;
  second.step = 2;
  const Rule<float> rule = NumbersOf<Rule<float>>::make({}, second);
  int count = 0;
  for (int k = 0; k < count_of(Rule<float>::states_of(variant)); ++k) {
    float param = 1, states[kMaxStates + 1] = {};
    states[k] = NAN;
    rule.template operator()<variant>(param, 1.0f, states);
    bool carried = std::isnan(param);
    for (const float state : states) carried = carried || std::isnan(state);
    count += carried;
  }
  return count;
}

template <template <class> class Rule, int variant = 0>
void list() {
  if constexpr (variant < Rule<float>::kVariants) {
    const int read = 2 + states_read<Rule, variant>(), written = 2 + count_of(Rule<float>::states_of(variant));
    std::printf("%s %d %d %d\\n", typeid(Rule<float>).name(), variant, read, written);
    list<Rule, variant + 1>();
  }
}

template <template <class> class... Rules>
void list_all(RuleList<Rules...>) {
  (list<Rules>(), ...);
}

int main() { list_all(AllRules()); }
"""


@pytest.fixture(scope="module")
def built() -> Contents:
    """The device code of the module that is in use."""
    if not build_info()["cuda"]:
        pytest.skip("the module in use has no CUDA kernels")
    if machine_code.tool("cuobjdump") is None or machine_code.tool("nvdisasm") is None:
        pytest.skip("cuobjdump and nvdisasm are not installed; requirements-dev.txt lists them")
    return machine_code.contents(Path(fusedoptim.native._C.__file__))


@pytest.fixture(scope="module")
def accesses(tmp_path_factory: pytest.TempPathFactory) -> dict[Variant, tuple[int, int]]:
    """The step kernels that the sources ask for, and how many loads and stores of each must access 128 bits."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("variants")
    (folder / "list.cpp").write_text(LIST_VARIANTS)
    command = [compiler, "-std=c++17", f"-I{ROOT / 'csrc'}", "list.cpp", "-o", "list"]
    subprocess.run(command, cwd=folder, check=True)
    listed = subprocess.run([folder / "list"], text=True, capture_output=True, check=True).stdout
    found = re.findall(r"10fusedoptim\d+(\w+?)IfE\S* (\d+) (\d+) (\d+)", listed)
    assert len(found) == len(listed.splitlines()) > 0
    return {
        Variant(arithmetic, rule, int(number)): (each * (int(read) + others), each * (int(written) + others))
        for arithmetic, (each, others) in OPERANDS.items()
        for rule, number, read, written in found
    }


def test_every_architecture_is_there(built: Contents) -> None:
    assert machine_code.problems_of_architectures(build_info()["cuda_architectures"], built.architectures) == []
    assert built.code


def test_every_kernel_is_there(built: Contents, accesses: dict[Variant, tuple[int, int]]) -> None:
    for names in [*map(set, built.code.values()), *(ptx.kernels for ptx in built.ptx.values())]:
        variants = [machine_code.variant_of(name) for name in names]
        assert Counter(variants) == Counter([*accesses, *[None] * len(machine_code.OTHERS)])
        assert {machine_code.other_of(name) for name in names} == {None, *machine_code.OTHERS}


ALONE = ("4AdanE",)  # of four states, whose kernels may take all registers of a processor: kBlocks in kernels.cu


def test_no_kernel_spills_or_approximates_and_all_access_128_bits(
    built: Contents, accesses: dict[Variant, tuple[int, int]]
) -> None:
    problems = [
        f"{architecture} {name} {problem}"
        for architecture, kernels in built.code.items()
        for name, kernel in kernels.items()
        for problem in machine_code.problems_of_kernel(
            kernel, accesses.get(machine_code.variant_of(name)), machine_code.other_of(name)
        )
        if not (problem.endswith(" registers") and any(rule in name for rule in ALONE))
    ]
    assert problems == []


def test_ptx_leaves_nothing_to_fuse_or_approximate(built: Contents) -> None:
    for ptx in built.ptx.values():
        assert machine_code.problems_of_ptx(ptx.instructions) == []
        assert ptx.instructions["add.rn.f32"] > 0  # it was read at all
        assert ptx.instructions["sqrt.rn.f64"] > 0


# ---- the checks themselves, on doctored texts ------------------------------------------------------------------------
STEP = "_ZN10fusedoptim4cuda3f324stepINS_4AdamELi3EEEvNS0_10StepLaunchE"
SASS = f"""
	code for sm_90
		Function : {STEP}
	.headerflags	@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                     /* 0x00000a00ff017b82 */
                                                                              /* 0x000fe20000000800 */
        /*0010*/                   LDG.E.128 R4, desc[UR6][R2.64] ;           /* 0x0000000602047981 */
        /*0020*/              @!P0 LDG.E.128.CONSTANT R8, desc[UR6][R2.64] ;  /* 0x0000000602047981 */
        /*0030*/                   MUFU.RCP R5, R4 ;                          /* 0x0000000400057308 */
        /*0040*/                   MUFU.RSQ64H R5, R4 ;                       /* 0x0000000400057308 */
        /*0050*/               @P1 STG.E.128 desc[UR6][R2.64], R4 ;           /* 0x0000000402007986 */
        /*0060*/             @!UP1 STG.E.128 desc[UR6][R2.64], R8 ;           /* 0x0000000402007986 */
"""
USAGE = f"""
 Function {STEP}:
  REG:104 STACK:0 SHARED:145 LOCAL:0 CONSTANT[2]:8 CONSTANT[0]:624 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
PTX = f"""
.version 9.0
.target sm_120
.address_size 64
.visible .entry {STEP}(
	.param .align 16 .b8 p[240]
)
{{
	ld.global.v4.f32 	{{%f1, %f2, %f3, %f4}}, [%rd1];
	@%p1 bra 	$L__BB0_2;
	add.rn.f32 	%f5, %f1, %f2;
	fma.rn.f32 	%f6, %f1, %f2, %f5;
	div.rn.f64 	%fd1, %fd2, %fd3;
	cvt.rn.f16.f32 	%rs1, %f6;
	cvt.f64.f32 	%fd4, %f6;
	mad.lo.s64 	%rd2, %rd1, 4, %rd3;
$L__BB0_2:
	ret;
}}
"""


def problems_of(
    sass: str = SASS, usage: str = USAGE, accesses: tuple[int, int] | None = (2, 2), other: str | None = None
) -> list[str]:
    kernels = machine_code.parse_code(sass, usage)
    assert list(kernels) == [STEP]
    return machine_code.problems_of_kernel(kernels[STEP], accesses, other)


def test_reading() -> None:
    kernel = machine_code.parse_code(SASS, USAGE)[STEP]
    seeds = ["MUFU.RCP", "MUFU.RSQ64H"]
    memory = ["LDG.E.128", "LDG.E.128.CONSTANT", "STG.E.128", "STG.E.128"]
    assert kernel == Kernel(Counter(["LDC", *memory, *seeds]), 104, 0, 0, ahead=2)
    assert machine_code.variant_of(STEP) == Variant("f32", "Adam", 3)
    for name in machine_code.OTHERS:
        mangled = f"_ZN10fusedoptim4cuda{len(name)}{name}ENS0_10ALaunchE"
        assert machine_code.variant_of(mangled) is None
        assert machine_code.other_of(mangled) == name
    assert machine_code.other_of(STEP) is None
    (version, ptx), *rest = machine_code.parse_ptx(PTX).items()
    assert (version, rest) == ("12.0", [])
    told = ["ld.global.v4.f32", "bra", "add.rn.f32", "fma.rn.f32", "div.rn.f64", "cvt.rn.f16.f32", "cvt.f64.f32"]
    assert ptx == Ptx({STEP}, Counter([*told, "mad.lo.s64"]))
    assert machine_code.as_version("sm_90a") == "9.0a"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("LDC R1", "LDL R1", "local memory"),
        ("LDC R1", "STL.64 R1", "local memory"),
        ("STACK:0", "STACK:8", "stack 8"),
        ("LOCAL:0", "LOCAL:16", "local 16"),
        ("REG:104", "REG:129", "needs 129 registers"),
        ("LDG.E.128.CONSTANT", "LDG.E.64.CONSTANT", "1 128-bit loads and not 2"),
        ("LDG.E.128 ", "LD.E.128 ", "1 128-bit loads and not 2"),
        ("STG.E.128", "STG.E.64", "0 128-bit stores and not 2"),
        ("MUFU.RCP", "MUFU.EX2", "approximates: ['MUFU.EX2']"),
        ("MUFU.RCP", "MUFU.SQRT", "approximates: ['MUFU.SQRT']"),
        ("MUFU.RCP", "MUFU.RCP.F16", "approximates: ['MUFU.RCP.F16']"),
        ("REG:104", "REG:0", "was not read"),
    ],
)
def test_a_bad_kernel_is_found(old: str, new: str, problem: str) -> None:
    assert problems_of() == []
    (found,) = problems_of(SASS.replace(old, new), USAGE.replace(old, new))
    assert problem in found


def test_a_kernel_that_zeroes_must_store_128_bits() -> None:
    assert problems_of(accesses=None, other="zero") == []
    (found,) = problems_of(SASS.replace("STG.E.128", "STG.E"), accesses=None, other="zero")
    assert found == "has 0 128-bit STG and not 1"


@pytest.mark.parametrize("between", ["DFMA R1, R2, R3, R4", "BRA `(.L_x_1)"])
def test_the_norm_must_read_ahead(between: str) -> None:
    load = "        /*0020*/                   LDG.E R8, desc[UR6][R2.64] ;           /* 0x0000000602047981 */\n"
    read = f"\t\tFunction : {STEP}\n" + 8 * load
    assert problems_of(read, accesses=None, other="norm") == []
    use = load.replace("LDG.E R8, desc[UR6][R2.64]", between)
    (found,) = problems_of(f"\t\tFunction : {STEP}\n" + 7 * load + use + load, accesses=None, other="norm")
    assert found == "reads 7 elements ahead and not 8"


@pytest.mark.parametrize(
    "bad",
    [
        "add.f32", "sub.f64", "mul.f32", "mul.ftz.f32", "add.rn.ftz.f32", "div.approx.f32", "div.full.f32",
        "sqrt.approx.f32", "rsqrt.approx.f32", "ex2.approx.f32", "fma.rz.f32", "mad.rn.f32", "cvt.rz.f16.f32",
        "tanh.f32", "add.f32x2",
    ],
)  # fmt: skip
def test_bad_ptx_is_found(bad: str) -> None:
    assert machine_code.problems_of_ptx(machine_code.parse_ptx(PTX)["12.0"].instructions) == []
    (ptx,) = machine_code.parse_ptx(PTX.replace("add.rn.f32", bad)).values()
    (problem,) = machine_code.problems_of_ptx(ptx.instructions)
    assert problem.startswith(bad)


def test_a_missing_architecture_is_found() -> None:
    found = Contents({"8.0": {}, "9.0": {}}, {"9.0": Ptx()}).architectures
    assert machine_code.problems_of_architectures(["8.0", "9.0", "9.0+PTX"], found) == []
    assert machine_code.problems_of_architectures(["7.5", "8.0", "9.0", "9.0+PTX"], found) == ["lacks 7.5"]
    assert machine_code.problems_of_architectures(["8.0", "9.0"], found) == ["has 9.0+PTX besides"]
