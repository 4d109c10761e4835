"""How far parameters are from where float64 puts them, and what is called correct.

An error is the distance between parameters as a share of the distance that float64 has moved them, over all elements
and for the worst single one. A variant is correct if each of its errors is at most `TOLERANCE` times the largest among
torch's variants and a package's (leaving itself out). These order their operations differently, so that they are a
sample of what rounding does.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 2.0
ALONE = 1e-4  # the largest error where there is no other implementation: float32 has 2e-5 after a few steps


@dataclass(frozen=True)
class Error:
    """How far parameters are from where float64 puts them."""

    overall: float  # 2-norm of the difference over 2-norm of the move
    worst: float  # greatest difference of an element over the greatest move of an element

    @classmethod
    def of(cls, params: Iterable[Tensor], exact: Iterable[Tensor], start: Iterable[Tensor]) -> "Error":
        """Measures tensor by tensor, so that float64 copies of a large model need not exist at once."""
        square = move_square = worst = farthest = 0.0
        for p, e, s in zip(params, exact, start, strict=True):
            difference = p.detach().double() - e.detach()
            move = e.detach() - s.detach().double()
            square += difference.square().sum().item()
            move_square += move.square().sum().item()
            worst = max(worst, difference.abs().max().nan_to_num(torch.inf).item())
            farthest = max(farthest, move.abs().max().item())
        return cls((square / move_square) ** 0.5, worst / farthest)


def within(error: float, others: Iterable[float], tolerance: float = TOLERANCE) -> bool:
    """Whether `error` is no worse than the largest of `others` but for the tolerance; NaN never is."""
    return error <= tolerance * max(others, default=ALONE)


def no_worse(error: Error, others: Sequence[Error], tolerance: float = TOLERANCE) -> bool:
    overall = within(error.overall, (o.overall for o in others), tolerance)
    return overall and within(error.worst, (o.worst for o in others), tolerance)


def checksum(params: Iterable[Tensor]) -> int:
    """Of the bits of float32 parameters on the CPU."""
    return sum(zlib.crc32(p.detach().numpy().data) for p in params)


def as_near(ours: Sequence[Tensor], theirs: Sequence[Tensor], exact: Sequence[Tensor]) -> bool:
    """Whether our results are no farther from float64's than torch's by more than rounding explains."""
    start = [torch.zeros_like(x) for x in exact]  # any: the shares of the way are only compared
    return no_worse(Error.of(ours, exact, start), [Error.of(theirs, exact, start)])
