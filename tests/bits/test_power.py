"""Powers of the step count: correctly rounded in the reference, and the same in the kernels' own arithmetic."""

from __future__ import annotations

import ctypes
import math
import random
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest

from fusedoptim.reference.ieee import power

COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
BASES = [0.9, 0.95, 0.98, 0.99, 0.999, 0.9999, 0.5, 0.3, 1e-3, 1 - 2.0**-53]


def cases(count: int, largest: float, seed: int) -> list[tuple[float, int]]:
    """Usual and random bases, with exponents of all magnitudes."""
    draw = random.Random(seed)
    bases = [*BASES, *(draw.random() for _ in range(10))]
    return [(draw.choice(bases), int(2 ** draw.uniform(0, math.log2(largest)))) for _ in range(count)]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """``power`` of csrc/rules/rule.h."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("power")
    source, library = folder / "power.cpp", folder / "power.so"
    source.write_text(
        '#include "rules/rule.h"\n'
        'extern "C" double power(double base, double exponent) { return fusedoptim::power(base, exponent); }\n'
    )
    csrc = Path(__file__).parents[2] / "csrc"
    flags = ["-O2", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC", f"-I{csrc}"]
    subprocess.run([COMPILER, *flags, source, "-o", library], check=True)
    found = ctypes.CDLL(str(library))
    found.power.restype, found.power.argtypes = ctypes.c_double, [ctypes.c_double, ctypes.c_double]
    return found


def test_the_reference_is_correctly_rounded() -> None:
    for base, exponent in cases(300, 2000, seed=1):
        assert power(base, exponent) == float(Fraction(base) ** exponent), (base, exponent)


def test_the_kernels_arithmetic_is_the_references(compiled: ctypes.CDLL) -> None:
    """Down to 1e-280: below, 1 minus it is 1 in any case, and pairs of doubles lose their lower parts."""
    checked = 0
    for base, exponent in cases(20_000, 2.0**24, seed=2):
        expected = power(base, exponent)
        if expected > 1e-280:
            checked += 1
            assert compiled.power(base, exponent) == expected, (base, exponent)
        else:
            assert 1 - compiled.power(base, exponent) == 1, (base, exponent)
    assert checked > 10_000


@pytest.mark.parametrize(
    ("base", "exponent", "expected"),
    [
        (0.9, 0.0, 1.0),
        (0.0, 0.0, 1.0),
        (0.0, 3.0, 0.0),
        (1.0, 2.0**60, 1.0),
        (0.9, math.inf, 0.0),
        (0.25, 2.5, 0.03125),
        (0.9, -1.0, math.nan),
        (0.9, math.nan, math.nan),
    ],
)
def test_edges(base: float, exponent: float, expected: float, compiled: ctypes.CDLL) -> None:
    for result in (power(base, exponent), compiled.power(base, exponent)):
        assert result == expected or (math.isnan(result) and math.isnan(expected))


def test_fractions(compiled: ctypes.CDLL) -> None:
    """Exponents as of momentum that decays, and of any other fraction; bases above 1 as of a learning rate's decay."""
    draw = random.Random(3)
    bases = [0.96, *BASES, *(1 + 10 ** draw.uniform(-8, 6) for _ in range(10))]
    for _ in range(5_000):
        base, exponent = draw.choice(bases), draw.choice([0.004 * draw.randrange(10**6), 10 ** draw.uniform(-30, 2)])
        exponent = exponent % 10 if base > 1 else exponent
        expected = power(base, exponent)
        assert expected == pytest.approx(base**exponent, rel=1e-13, abs=1e-300)
        if expected > 1e-280:
            assert compiled.power(base, exponent) == expected, (base, exponent)
