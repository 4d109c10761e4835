"""Tensors in any layout, inside buffers whose other elements nobody may change."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from steps import any_bits, difference
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where the elements of a tensor lie in a larger buffer.

    ``order`` lists the dimensions from the outermost to the innermost, as in memory; ``spacing`` is the distance
    between neighbours of the innermost one; every dimension but the outermost is ``padding`` elements longer in
    memory; the whole begins ``offset`` elements into the buffer; along ``expanded`` dimensions all elements are one.
    """

    order: tuple[int, ...]
    spacing: int = 1
    padding: int = 0
    offset: int = 0
    expanded: tuple[int, ...] = ()


# For tensors of 4 dimensions.
LAYOUTS: dict[str, Layout] = {
    "contiguous": Layout((0, 1, 2, 3)),
    "channels last": Layout((0, 2, 3, 1)),
    "transposed": Layout((3, 2, 1, 0)),
    "permuted": Layout((2, 0, 3, 1)),
    "begins one element in": Layout((0, 1, 2, 3), offset=1),
    "channels last, three elements in": Layout((0, 2, 3, 1), offset=3),
    "every second element": Layout((0, 1, 2, 3), spacing=2),
    "every third, transposed, one element in": Layout((3, 2, 1, 0), spacing=3, offset=1),
    "padded rows": Layout((0, 1, 2, 3), padding=2),
    "padded channels last": Layout((0, 2, 3, 1), padding=1, offset=5),
}
EXPANDED_LAYOUTS: dict[str, Layout] = {  # a gradient may lie so, nothing else
    "one element": Layout((0, 1, 2, 3), expanded=(0, 1, 2, 3)),
    "expanded outside": Layout((0, 1, 2, 3), expanded=(0,)),
    "expanded inside": Layout((0, 1, 2, 3), expanded=(3,), offset=1),
    "expanded in the middle, permuted": Layout((3, 0, 1, 2), expanded=(1, 2)),
}


class Placed:
    """A copy of a tensor in a given layout, in a buffer whose other elements are guards that nobody may change."""

    def __init__(self, values: Tensor, layout: Layout) -> None:
        shape, strides, pitch = values.shape, [0] * values.dim(), layout.spacing
        for d in reversed(layout.order):
            if d not in layout.expanded:
                strides[d] = pitch
                pitch *= shape[d] + layout.padding
        guard = 64  # elements after the end
        self.buffer = any_bits(layout.offset + pitch + guard, values.dtype, seed=pitch)
        base = [1 if d in layout.expanded else n for d, n in enumerate(shape)]
        first = values[tuple(slice(0, n) for n in base)]
        self.view = self.buffer.as_strided(base, strides, layout.offset).copy_(first).expand(shape)
        places = torch.arange(self.buffer.numel()).as_strided(shape, strides, layout.offset)
        self._guards = torch.ones(self.buffer.numel(), dtype=torch.bool)
        self._guards[places.flatten()] = False
        self.forget()

    def forget(self) -> None:
        """What the guards hold now is what they are to hold."""
        self._before = self.buffer.clone()

    def guard_difference(self) -> str | None:
        """What happened to the guards; None if nothing did."""
        return difference(self.buffer[self._guards], self._before[self._guards])
