"""``fusedoptim.ieee`` against libm, numpy and exact rational arithmetic, bit for bit.

NaN equals NaN; the signs of zeros must agree.
"""

import ctypes
import ctypes.util
import itertools
import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from fusedoptim.reference import ieee

DTYPES = [torch.float32, torch.float64]
NUMPY = {torch.float32: np.float32, torch.float64: np.float64}
BITS = {torch.float32: np.uint32, torch.float64: np.uint64}
MANTISSA = {torch.float32: 23, torch.float64: 52}
MAX_EXPONENT = {torch.float32: 255, torch.float64: 2047}  # biased; that of infinity
BIAS = {torch.float32: 127, torch.float64: 1023}
SAMPLES = 1 << 17

_LIBM = ctypes.CDLL(ctypes.util.find_library("m") or "ucrtbase")
_LIBM.fma.argtypes, _LIBM.fma.restype = [ctypes.c_double] * 3, ctypes.c_double
_LIBM.fmaf.argtypes, _LIBM.fmaf.restype = [ctypes.c_float] * 3, ctypes.c_float


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The tests are many small operations, which threads on a busy machine make slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def libm_fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    function = _LIBM.fmaf if a.dtype == torch.float32 else _LIBM.fma
    return torch.tensor(list(map(function, a.tolist(), b.tolist(), c.tolist())), dtype=a.dtype)


def round_exactly(x: Fraction, dtype: torch.dtype) -> float:
    """Round a rational number to nearest even in ``dtype``, from the definition."""
    digits, lowest = MANTISSA[dtype], 1 - BIAS[dtype] - MANTISSA[dtype]
    if x == 0:
        return 0.0
    exponent = x.numerator.bit_length() - x.denominator.bit_length()  # floor(log2 |x|), or one more
    exponent -= abs(x) < Fraction(2) ** exponent
    unit = Fraction(2) ** max(exponent - digits, lowest)
    rounded = round(x / unit) * unit  # round() of a Fraction is to nearest even
    overflows = abs(rounded) >= Fraction(2) ** (BIAS[dtype] + 1)
    magnitude = math.inf if overflows else float(abs(rounded))
    return -magnitude if x < 0 else magnitude


def mismatches(actual: Tensor, expected: Tensor) -> Tensor:
    """Return the indices at which the bits differ."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    integer = torch.int32 if actual.dtype == torch.float32 else torch.int64
    same = actual.view(integer) == expected.view(integer)
    return torch.nonzero(~(same | (actual.isnan() & expected.isnan())).flatten()).flatten()


def assert_same(actual: Tensor, expected: Tensor, *operands: Tensor) -> None:
    wrong = mismatches(actual, expected)
    if len(wrong):
        values = [x.flatten()[wrong[0]].item().hex() for x in (*operands, actual, expected)]
        pytest.fail(f"{len(wrong)} of {actual.numel()} wrong; operands, actual, expected: {values}")


class Patterns:
    """Random numbers whose mantissas are as often sparse or nearly full as they are arbitrary."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        self.dtype = dtype
        self.rng = np.random.default_rng(seed)

    def mantissas(self, n: int) -> np.ndarray:
        digits, integer = MANTISSA[self.dtype], BITS[self.dtype]
        full = self.rng.integers(0, 1 << digits, n, dtype=integer)
        one = integer(1)
        first, second = (one << self.rng.integers(0, digits, n).astype(integer) for _ in range(2))
        ones = integer((1 << digits) - 1)
        choice = self.rng.integers(0, 4, n)
        return np.choose(choice, [full, first | (second * (full & one)), ones ^ (first - one), first - one])

    def numbers(self, exponents: np.ndarray) -> Tensor:
        """Return numbers of either sign with these biased exponents, clipped to those that exist."""
        digits, integer = MANTISSA[self.dtype], BITS[self.dtype]
        n = len(exponents)
        sign = self.rng.integers(0, 2, n).astype(integer) << integer(len(f"{MAX_EXPONENT[self.dtype]:b}") + digits)
        exponent = np.clip(exponents, 0, MAX_EXPONENT[self.dtype]).astype(integer) << integer(digits)
        return torch.from_numpy((sign | exponent | self.mantissas(n)).view(NUMPY[self.dtype]))

    def between(self, low: int, high: int) -> np.ndarray:
        return self.rng.integers(low, high, SAMPLES)

    def next_to(self, x: Tensor) -> Tensor:
        """Return x or one of its neighbours."""
        integer = torch.int32 if self.dtype == torch.float32 else torch.int64
        offset = torch.from_numpy(self.between(-1, 2)).to(integer)
        return (x.view(integer) + offset).view(self.dtype)


Triple = tuple[Tensor, Tensor, Tensor]


def any_bits(p: Patterns) -> Triple:
    top = MAX_EXPONENT[p.dtype] + 1
    return tuple(p.numbers(p.between(0, top)) for _ in range(3))  # type: ignore[return-value]


def overlapping(p: Patterns) -> Triple:
    """C within reach of the product's bits, or just outside."""
    reach, top = 2 * MANTISSA[p.dtype] + 6, MAX_EXPONENT[p.dtype] + 1
    a, b = p.between(0, top), p.between(0, top)
    return p.numbers(a), p.numbers(b), p.numbers(a + b - BIAS[p.dtype] + p.between(-reach, reach))


def subnormal_result(p: Patterns) -> Triple:
    a, product = p.between(0, MAX_EXPONENT[p.dtype] + 1), p.between(-MANTISSA[p.dtype] - 5, 5)
    return p.numbers(a), p.numbers(product + BIAS[p.dtype] - a), p.numbers(p.between(0, 6))


def near_overflow(p: Patterns) -> Triple:
    top = MAX_EXPONENT[p.dtype]
    a, product = p.between(top // 2, top), p.between(-3, 3) + top - 1
    c = top - 1 - p.between(0, MANTISSA[p.dtype] + 4)
    return p.numbers(a), p.numbers(product + BIAS[p.dtype] - a), p.numbers(c)


def cancelling(p: Patterns) -> Triple:
    a, b = (p.numbers(p.between(0, MAX_EXPONENT[p.dtype] + 1)) for _ in range(2))
    return a, b, p.next_to(-(a * b))


def cancelling_to_subnormal(p: Patterns) -> Triple:
    digits = MANTISSA[p.dtype]
    exponent, product = p.between(0, MAX_EXPONENT[p.dtype] + 1), p.between(-digits - 5, 2 * digits)
    a, b = p.numbers(exponent), p.numbers(product + BIAS[p.dtype] - exponent)
    return a, b, p.next_to(-(a * b))


def tiny_product(p: Patterns) -> Triple:
    """Products that only break ties, or only tell a number from a tie."""
    a = p.between(0, BIAS[p.dtype] // 2)
    return p.numbers(a), p.numbers(p.between(0, BIAS[p.dtype] // 2)), p.numbers(a * 0 + BIAS[p.dtype])


def midpoints(p: Patterns) -> Triple:
    """Adding half the distance h to the next number; or h (1 + x); or h (1 + x) (1 - x), which looks like h."""
    digits, bias = MANTISSA[p.dtype], BIAS[p.dtype]
    c = p.numbers(p.between(digits + 3, 2 * bias))
    h = torch.from_numpy(np.spacing(c.abs().numpy())) / 2
    x = torch.from_numpy(np.ldexp(1.0, -p.between(digits // 2 + 1, digits + 1))).to(p.dtype)
    choice = torch.from_numpy(p.between(0, 4))
    return torch.where(choice > 0, 1 + x, 1), torch.where(choice > 1, h * (1 - x), h), c


FAMILIES = [
    any_bits,
    overlapping,
    subnormal_result,
    near_overflow,
    cancelling,
    cancelling_to_subnormal,
    tiny_product,
    midpoints,
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_fma_equals_libm(family: Callable[[Patterns], Triple], dtype: torch.dtype) -> None:
    operands = family(Patterns(dtype))
    assert_same(ieee.fma(*operands), libm_fma(*operands), *operands)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_fma_equals_rational_arithmetic(family: Callable[[Patterns], Triple], dtype: torch.dtype) -> None:
    finite = torch.stack(family(Patterns(dtype, seed=1))).isfinite().all(dim=0)
    a, b, c = (x[finite][:1000] for x in family(Patterns(dtype, seed=1)))
    sums = [Fraction(x) * Fraction(y) + Fraction(z) for x, y, z in zip(*map(Tensor.tolist, (a, b, c)), strict=True)]
    expected = torch.tensor([round_exactly(x, dtype) for x in sums], dtype=dtype)
    exact_zero = torch.tensor([x == 0 for x in sums])
    actual = ieee.fma(a, b, c)
    assert_same(actual[~exact_zero], expected[~exact_zero], a[~exact_zero], b[~exact_zero], c[~exact_zero])
    assert (actual[exact_zero] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", [overlapping, subnormal_result, cancelling, cancelling_to_subnormal, midpoints])
def test_families_tell_one_rounding_from_two(family: Callable[[Patterns], Triple], dtype: torch.dtype) -> None:
    a, b, c = family(Patterns(dtype))
    assert len(mismatches(a * b + c, libm_fma(a, b, c))) > SAMPLES // 100


def special_values(dtype: torch.dtype) -> list[float]:
    info = torch.finfo(dtype)
    smallest = info.smallest_normal * info.eps
    positive = [0.0, smallest, 3 * smallest, info.smallest_normal - smallest, info.smallest_normal]
    positive += [
        info.smallest_normal * (1 + info.eps),
        info.eps / 2,
        0.5,
        1 - info.eps / 2,
        1.0,
        1 + info.eps,
    ]
    positive += [
        3.0,
        math.sqrt(info.max),
        2 / info.eps,
        info.max / 2,
        info.max * (1 - info.eps / 2),
        math.inf,
    ]
    return [*positive, *(-x for x in positive), math.nan]


@pytest.mark.parametrize("dtype", DTYPES)
def test_fma_of_special_values(dtype: torch.dtype) -> None:
    triples = torch.tensor(list(itertools.product(special_values(dtype), repeat=3)), dtype=dtype)
    a, b, c = triples.unbind(dim=1)
    assert_same(ieee.fma(a, b, c), libm_fma(a, b, c), a, b, c)


@pytest.mark.parametrize(
    ("a", "b", "c", "expected"),
    [
        # The product is a hair off the midpoint between two results, far below the last bit of c.
        ("0x1p0", "0x1p-53", "0x1p0", "0x1p0"),
        ("0x1.0000000000001p0", "0x1p-53", "0x1p0", "0x1.0000000000001p0"),
        ("0x1.fffffffffffffp-1", "0x1p-53", "0x1p0", "0x1p0"),
        ("0x1p0", "0x1p-53", "0x1.0000000000001p0", "0x1.0000000000002p0"),
        ("0x1p-600", "-0x1p-600", "0x1p0", "0x1p0"),
        # A product that overflows or vanishes by itself.
        ("0x1p1023", "0x1p1", "-0x1.fffffffffffffp1023", "0x1p971"),
        ("0x1.fffffffffffffp1023", "0x1p1023", "-inf", "-inf"),
        ("0x1p-1074", "0x1p-1074", "0x1p-1074", "0x1p-1074"),
        ("-0x1p-1074", "0x1p-1074", "0x0p0", "-0x0p0"),
        ("0x1p-1074", "-0x1p-1074", "-0x0p0", "-0x0p0"),
        # Midpoints of subnormal numbers, and the hair beside them.
        ("0x1p-1074", "0x1p-1", "0x0p0", "0x0p0"),
        ("0x1p-1074", "0x1.8p0", "0x0p0", "0x1p-1073"),
        ("0x1.0000000000001p-1022", "0x1p-53", "0x0p0", "0x1p-1074"),
        # Just under the smallest normal number: half way at 53 bits, below half at 52.
        ("0x1.0000000000001p-500", "0x1.ffffffffffffdp-523", "0x0p0", "0x0.fffffffffffffp-1022"),
        ("0x1p-1", "-0x1p-1074", "0x1p-1022", "0x1p-1022"),
        ("0x1p-1", "-0x1.8p-1073", "0x1p-1022", "0x0.ffffffffffffep-1022"),
        # Exact cancellation is +0.
        ("0x1p0", "0x1p0", "-0x1p0", "0x0p0"),
        ("-0x1p0", "0x1p0", "0x1p0", "0x0p0"),
        ("-0x0p0", "0x1p0", "-0x0p0", "-0x0p0"),
        ("inf", "0x0p0", "0x1p0", "nan"),
        ("inf", "0x1p0", "-inf", "nan"),
    ],
)
def test_fma_by_hand(a: str, b: str, c: str, expected: str) -> None:
    operands = [torch.tensor([float.fromhex(x)], dtype=torch.float64) for x in (a, b, c)]
    assert_same(ieee.fma(*operands), torch.tensor([float.fromhex(expected)], dtype=torch.float64), *operands)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fma_rounds_numbers_to_the_dtype_first(dtype: torch.dtype) -> None:
    a = torch.randn(100, dtype=dtype, generator=torch.Generator().manual_seed(0))
    rounded = torch.tensor([0.1, -1 / 3], dtype=dtype)
    expected = libm_fma(a, rounded[0].expand(100), rounded[1].expand(100))
    assert_same(ieee.fma(a, 0.1, -1 / 3), expected)
    assert_same(ieee.fma(a, rounded[0], rounded[1:]), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_and_layouts(dtype: torch.dtype) -> None:
    x = torch.rand(6, 5, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    y, z = x.transpose(0, 2)[::2], x[:2, 0, :1]
    a, b, c = (t.clone() for t in torch.broadcast_tensors(y, y + 1, z.T[:, :1]))
    assert_same(ieee.fma(y, y + 1, z.T[:, :1]).contiguous(), libm_fma(*(t.flatten() for t in (a, b, c))).view(a.shape))
    assert_same(ieee.sqrt(y).contiguous(), ieee.sqrt(y.contiguous()))
    scalar = torch.tensor(2.0, dtype=dtype)
    assert_same(ieee.fma(scalar, scalar, scalar), torch.tensor(6.0, dtype=dtype))
    assert ieee.fma(x[:0], 1.0, 2.0).shape == ieee.sqrt(x[:0]).shape == (0, 5, 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 40_001])
def test_result_does_not_depend_on_position(n: int, dtype: torch.dtype) -> None:
    x = torch.full((n,), 0.7, dtype=dtype)
    assert len(ieee.fma(x, x, -0.49 * x).unique()) == 1
    assert len(ieee.sqrt(x).unique()) == 1


def test_default_dtype_does_not_matter() -> None:
    a = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    expected = ieee.fma(a, 0.1, 0.7), ieee.fma(a.double(), 0.1, 0.7), ieee.sqrt(a), ieee.sqrt(a.double())
    default = torch.get_default_dtype()
    try:
        for dtype in (torch.float64, torch.float16):
            torch.set_default_dtype(dtype)
            actual = (
                ieee.fma(a, 0.1, 0.7),
                ieee.fma(a.double(), 0.1, 0.7),
                ieee.sqrt(a),
                ieee.sqrt(a.double()),
            )
            for x, y in zip(actual, expected, strict=True):
                assert_same(x, y)
    finally:
        torch.set_default_dtype(default)


def test_operands_are_not_modified() -> None:
    for dtype in DTYPES:
        operands = any_bits(Patterns(dtype))
        before = [x.clone() for x in operands]
        ieee.fma(*operands)
        ieee.sqrt(operands[0])
        for x, y in zip(operands, before, strict=True):
            assert_same(x, y)


def test_other_dtypes_are_refused() -> None:
    half, single, double = (torch.ones(2, dtype=dtype) for dtype in (torch.float16, torch.float32, torch.float64))
    for operands in [(half, half, half), (single, double, single), (single, 1.0, double)]:
        with pytest.raises(TypeError, match="float32"):
            ieee.fma(*operands)
    with pytest.raises(TypeError, match="float16"):
        ieee.sqrt(half)


def numpy_sqrt(x: Tensor) -> Tensor:
    with np.errstate(invalid="ignore"):
        return torch.from_numpy(np.sqrt(x.numpy()))


def test_sqrt_of_every_float_in_two_binades() -> None:
    """Every mantissa with an even and an odd exponent; scaling by 4 changes nothing else."""
    one, four = (int(np.float32(x).view(np.int32)) for x in (1, 4))
    for start in range(one, four, 1 << 20):
        x = torch.arange(start, start + (1 << 20), dtype=torch.int32).view(torch.float32)
        assert_same(ieee.sqrt(x), numpy_sqrt(x), x)


def sqrt_operands(p: Patterns) -> Iterator[Tensor]:
    top = MAX_EXPONENT[p.dtype] + 1
    yield p.numbers(p.between(0, top))
    yield p.numbers(p.between(0, 2))
    yield torch.tensor(special_values(p.dtype), dtype=p.dtype)
    root = p.numbers(p.between(BIAS[p.dtype] // 2 + MANTISSA[p.dtype], BIAS[p.dtype] * 3 // 2)).abs()
    yield p.next_to(root * root)
    # Squares of midpoints: (r + u/2)^2 = r (r + u) + u^2/4, rounded.
    yield p.next_to(root * torch.nextafter(root, root * 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sqrt_equals_numpy(dtype: torch.dtype) -> None:
    for x in sqrt_operands(Patterns(dtype)):
        assert_same(ieee.sqrt(x), numpy_sqrt(x), x)


def test_sqrt_corrects_an_error_of_one_unit_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = list(sqrt_operands(Patterns(torch.float64)))
    for direction in (0.0, math.inf):

        def off_by_one(x: Tensor, towards: float = direction) -> Tensor:
            root = numpy_sqrt(x)
            return torch.where((x > 0) & x.isfinite(), root.nextafter(torch.full_like(root, towards)), root)

        with monkeypatch.context() as patch:
            patch.setattr(torch, "sqrt", off_by_one)
            for x in exact:
                assert_same(ieee.sqrt(x), numpy_sqrt(x), x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_division_is_exact(dtype: torch.dtype) -> None:
    """The rules rely on it, for a divisor of the same shape and for a constant."""
    p = Patterns(dtype)
    for a, b, _ in (family(p) for family in FAMILIES):
        with np.errstate(all="ignore"):
            assert_same(a / b, torch.from_numpy(a.numpy() / b.numpy()), a, b)
            assert_same(a / b[0], torch.from_numpy(a.numpy() / b[0].numpy()), a)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_torch_stores_16_bits_rounded_to_nearest_even(dtype: torch.dtype) -> None:
    """The rules rely on it: every midpoint between two neighbours, and the floats beside it."""
    largest = int(torch.tensor(torch.finfo(dtype).max, dtype=dtype).view(torch.int16))
    bits = torch.arange(largest, dtype=torch.int16)
    low, high = bits.view(dtype), (bits + 1).view(dtype)
    middle = ((low.double() + high.double()) / 2).float()
    even = torch.where(bits % 2 == 0, low, high)
    for sign in (1.0, -1.0):
        zero, infinity = torch.tensor(0.0), torch.tensor(sign * math.inf)
        for x, expected in [
            (sign * middle, sign * even),
            ((sign * middle).nextafter(zero), sign * low),
            ((sign * middle).nextafter(infinity), sign * high),
        ]:
            assert torch.equal(x.to(dtype).view(torch.int16), expected.view(torch.int16))
