"""Compiles and runs the programs of tests/proofs: each checks a claim of the kernels on all inputs that matter."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(Path(__file__).parent.glob("*.cpp"))
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def run(source: Path, program: Path) -> subprocess.CompletedProcess[str]:
    own = re.search(r"On x86-64 compile with (.*)", source.read_text())
    x86 = (own[1].split() if own else ["-mfma"]) if platform.machine() == "x86_64" else []
    flags = ["-O2", "-std=c++17", "-ffp-contract=off", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'proofs'}", *x86]
    subprocess.run([str(COMPILER), *flags, str(source), "-o", str(program)], check=True)
    return subprocess.run([str(program)], capture_output=True, text=True)


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("source", PROGRAMS, ids=lambda path: path.stem)
def test_proof(source, tmp_path):
    result = run(source, tmp_path / "proof")
    assert result.returncode == 0, result.stdout
    assert "all correct" in result.stdout


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    ("proof", "right", "wrong"),
    [
        ("division.cpp", "y = 1.0f / r;", "y = std::nextafter(1.0f / r, 2.0f);"),
        ("root.cpp", "h = std::fmaf(h, e, h);", ""),
        ("root.cpp", "kError = 0x1p-14;", "kError = 0x1p-9;"),
    ],
)
def test_proof_finds_a_mistake(proof, right, wrong, tmp_path):
    text = Path(__file__).with_name(proof).read_text()
    assert right in text
    planted = tmp_path / "planted.cpp"
    planted.write_text(text.replace(right, wrong))
    result = run(planted, tmp_path / "proof")
    assert result.returncode == 1
    assert "wrong" in result.stdout
