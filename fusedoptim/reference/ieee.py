"""Correctly rounded arithmetic on tensors, where torch's own operators do not promise it.

``fma`` and ``sqrt`` return, element by element, what IEEE 754 prescribes for round-to-nearest-even: the exact
result rounded once, with its subnormal, infinite, NaN and signed-zero cases. They are built from torch's
``+``, ``-``, ``*`` and dtype conversions between tensors, which do round correctly. So does ``/`` between two
tensors, which therefore needs no function here (division by a Python number is a multiplication by the
reciprocal on some devices). ``torch.set_flush_denormal(True)`` voids all of this.

The tool is rounding to odd (Boldo & Melquiond 2008, "Emulation of a FMA and correctly rounded sums: proved
algorithms using rounding to odd"): of a number that is not representable, take the neighbour whose last bit
is 1. That bit then remembers that something was cut off, and rounding again, to nearest and to a precision
at least two bits lower, gives the same as rounding the exact number once.
"""

import math
from decimal import Context, Decimal, Overflow

import torch
from torch import Tensor

_EXPONENT_GAP = 300  # of two summands further apart than 2^300, the sign of the smaller is all that counts
_MIN_NORMAL = 2.0**-1022
_SPLITTER = 2.0**27 + 1
_EXACT = Context(prec=60, Emin=-(10**15), Emax=10**15)


def power(base: float, exponent: float) -> float:
    """Return ``base ** exponent`` rounded once: libraries' own differ in the last bit.

    Args:
        base: At least 0.
        exponent: At least 0, as a step count is. A negative one, or a negative base, gives NaN.
    """
    if not exponent >= 0 or base < 0:
        return math.nan
    if base == 0 or exponent == 0:
        return float(exponent == 0)
    try:
        return float(_EXACT.power(Decimal(base), Decimal(exponent)))
    except Overflow:
        return math.inf


def log2(x: float) -> float:
    """Return the logarithm of a number within 0 and 1 to base 2, rounded once; of others NaN, but of 1."""
    if not 0 < x < 1:
        return 0.0 if x == 1 else math.nan
    return float(_EXACT.divide(_EXACT.ln(Decimal(x)), _EXACT.ln(Decimal(2))))


def divide(a: float, b: float) -> float:
    """Return ``a / b``, and for 0 below what IEEE 754 prescribes, where Python raises."""
    return a / b if b != 0 else a * math.copysign(math.inf, b)


class OutOfRangeError(RuntimeError):
    """A finite number that the arithmetic cannot hold."""


def as_scalar(value: float, like: Tensor) -> Tensor:
    """Return ``value`` rounded once to the dtype of ``like``, as a 0-dim tensor on its device.

    Raises:
        OutOfRangeError: ``value`` is finite, and too large for the dtype.
    """
    scalar = torch.tensor(value, dtype=like.dtype, device=like.device)
    if math.isfinite(value) and not bool(scalar.isfinite()):
        raise OutOfRangeError(
            f"value cannot be converted to type float without overflow: {value!r} is beyond {like.dtype}, in which the "
            "arithmetic is"
        )
    return scalar


def fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """Return ``a * b + c``, rounded once.

    Args:
        a: Tensor of dtype float32 or float64.
        b: Tensor that broadcasts with ``a``, of the same dtype; or a number, rounded to that dtype first.
        c: As ``b``.

    Raises:
        TypeError: The dtypes differ, or are neither float32 nor float64.
    """
    b = b if isinstance(b, Tensor) else as_scalar(b, a)
    c = c if isinstance(c, Tensor) else as_scalar(c, a)
    if not a.dtype == b.dtype == c.dtype or a.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"operands must be all float32 or all float64, got {a.dtype}, {b.dtype}, {c.dtype}")
    if a.dtype == torch.float32:
        # The 24 + 24 bits of the product fit in the 53 of a double, so it is exact; and 53 >= 24 + 2, so the
        # sum may be rounded to odd before it is rounded to float.
        return _add_to_odd(a.double() * b.double(), c.double()).float()
    return _fma_double(a, b, c)


def sqrt(x: Tensor) -> Tensor:
    """Return the square root of ``x`` (float32 or float64), rounded once; NaN below zero, -0 for -0."""
    if x.dtype == torch.float32:
        # The root of a float is 4 units in the last place of a double or more away from the midpoint between
        # two floats, so the rounding to float absorbs the error of torch's root.
        return torch.sqrt(x.double()).float()
    if x.dtype != torch.float64:
        raise TypeError(f"the operand must be float32 or float64, got {x.dtype}")
    # x = m 4^e with m in [1/4, 1), so the root s of m lies in [1/2, 1), where the doubles are one unit apart.
    # torch's root may be off by one unit: too low if m > (s + unit / 2)^2 = s^2 + s unit + unit^2 / 4, too
    # high if m < (s - unit / 2)^2. All terms but the last are multiples of unit^2, so there is no tie.
    m, e = torch.frexp(x)
    odd = e & 1
    m, e = torch.where(odd == 1, m / 2, m), (e + odd) >> 1
    unit = 2.0**-53
    s = torch.sqrt(m)
    high, low = _two_product(s, s)
    residual = (m - high) - low
    s = s + unit * ((residual > s * unit).double() - (residual <= -s * unit).double())
    return torch.where((x > 0) & x.isfinite(), s * _power_of_two(e), torch.sqrt(x))


def _fma_double(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Fused multiply-add in float64: the algorithm of Boldo & Melquiond on operands scaled into a safe range.

    With a = ma 2^ea and so on, compute r = ma mb + mc 2^d, where d = ec - (ea + eb); the result is r 2^e.
    """
    (ma, ea), (mb, eb), (mc, ec) = torch.frexp(a), torch.frexp(b), torch.frexp(c)
    e = ea + eb
    d = torch.where(c == 0, 0, ec - e)
    e = torch.where(d > _EXPONENT_GAP, ec - _EXPONENT_GAP, e).clamp(-2044, 2046)
    scaled_c = mc * _power_of_two(d.clamp(-_EXPONENT_GAP, _EXPONENT_GAP))

    # ma mb + scaled_c = sum_high + (sum_low + rest), exactly.
    product, product_low = _two_product(ma, mb)
    addend, rest = _two_sum(scaled_c, product_low)
    sum_high, sum_low = _two_sum(product, addend)
    tail = _add_to_odd(sum_low, rest)
    r = sum_high + tail
    result = _scale(r, e)

    # Below 2^-1022 the doubles are the multiples of 2^-1074, and r has been rounded at a finer place. Adding
    # a bias of 2^-1022, in the scale of r, moves the rounding to the right place; subtracting it is exact.
    tiny = (result.abs() <= _MIN_NORMAL) & (r != 0)
    if tiny.any():
        bias = torch.copysign(_power_of_two(-1022 - e), r)
        high, low = _two_sum(bias, sum_high)
        rounded = (high + _add_to_odd(low, tail)) - bias
        result = torch.where(tiny, torch.copysign(_scale(rounded, e), r), result)

    # With a zero, infinite or NaN operand nothing is rounded twice; but a * b might overflow, ma * mb cannot.
    regular = (a != 0) & (b != 0) & a.isfinite() & b.isfinite() & c.isfinite()
    return torch.where(regular, result, ma * mb + c)


def _two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return s, e with s = round(a + b) and s + e = a + b exactly (Knuth; Møller)."""
    s = a + b
    b_part = s - a
    return s, (a - (s - b_part)) + (b - b_part)


def _two_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return p, e with p = round(a * b) and p + e = a * b exactly, if none is huge or tiny (Dekker 1971)."""
    p = a * b
    a_high, b_high = (x * _SPLITTER - (x * _SPLITTER - x) for x in (a, b))
    a_low, b_low = a - a_high, b - b_high
    return p, ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low


def _add_to_odd(a: Tensor, b: Tensor) -> Tensor:
    """Return a + b in float64, rounded to odd."""
    s, error = _two_sum(a, b)
    bits = s.view(torch.int64)
    inexact = (error > 0) | (error < 0)  # False for the NaN that infinite operands leave
    step = torch.where((error > 0) == (s > 0), 1, -1)  # away from zero or towards it: to where the error is
    return torch.where(inexact & (bits & 1 == 0), bits + step, bits).view(torch.float64)


def _power_of_two(n: Tensor) -> Tensor:
    """Return 2^n in float64, for integers n from -1022 to 1023 (torch.ldexp goes through pow)."""
    return ((n.long() + 1023) << 52).view(torch.float64)


def _scale(x: Tensor, n: Tensor) -> Tensor:
    """Return x * 2^n for n from -2044 to 2046: exact, or infinite, or at most 2^-1022 in magnitude."""
    half = n >> 1
    return x * _power_of_two(half) * _power_of_two(n - half)
