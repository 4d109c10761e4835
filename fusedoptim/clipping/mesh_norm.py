"""The norm of gradients that are sharded over processes (DTensors): each adds the squares of its local shards.

The collectives depend on the meshes of the parameters alone, neither on how many tensors there are nor on which of them
have a gradient in this process: one all-reduce for each mesh and each of its dimensions that has more than one process.
They use the process groups that the mesh has; none is made.

Each process contributes its number in its own element of a vector of zeros, so the all-reduce rounds nothing. Then all
processes add the same numbers in the same order and get the same bits, whatever order the backend adds in. So all take
the same decision.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fusedoptim import native
from fusedoptim.clipping.grads import ReferenceGrads, largest, mark_of, ordered_sum, sum_of_squares
from fusedoptim.torch_internals.dtensor import has_dtensors, is_dtensor, local_of


def grads_of(lists: list[list[Tensor]], by_module: bool) -> Any:
    """The gradients of lists of parameters, by the compiled module or by the reference, wherever their parts lie."""
    make = native.grads if by_module else ReferenceGrads
    return MeshGrads(lists, make) if has_dtensors(lists) else make(lists)


def replicated(norm: Any) -> Any:
    """A norm of torch's, of which, if it is a DTensor, each process is to have a copy in place of a part."""
    return norm.redistribute(placements=[_replicate()] * _spec(norm).mesh.ndim) if is_dtensor(norm) else norm


class _Holder:
    """Stands for a parameter with a gradient."""

    __slots__ = ("grad",)

    def __init__(self, grad: Tensor) -> None:
        self.grad = grad


class _Part:
    """The local shards of gradients with the same mesh and placements, as plain tensors."""

    def __init__(self, make: Callable[[list[list[Any]]], Any], holders: list[Any], counts: bool = True) -> None:
        self.tensors: list[Tensor] = [holder.grad for holder in holders]
        self.grads = make([holders])
        self.others: list[Tensor] = self.grads.others()
        self._counts = counts

    def counted(self, squares: float) -> float:
        """Replicas count once, but infinity and NaN of all of them."""
        return squares if self._counts or not math.isfinite(squares) else 0.0


class MeshGrads:
    """As ``_C.Grads``, where parameters are DTensors.

    Meshes are taken by size, the smallest first. What the processes of one add up to is then, for the next, a number
    of which each process has a copy, and so are the gradients that are plain tensors: copies count once, as the first
    process of the mesh has them. So all processes of the largest mesh have the same bits, even where copies differ.
    """

    def __init__(self, lists: list[list[Tensor]], make: Callable[[list[list[Any]]], Any]) -> None:
        params = list(chain.from_iterable(lists))
        sharded: dict[Any, dict[Any, list[Any]]] = {}  # the gradients that are DTensors, by mesh and by placements
        self._dtensors = [param for param in params if is_dtensor(param)]
        self._found: list[tuple[Any, Any, Any]] = []  # parameters with such a gradient, that, and its marks
        self._partial: list[Tensor] = []  # the local tensors of gradients with Partial placements
        for param in self._dtensors:
            sharded.setdefault(_spec(param).mesh, {})
        for param in params:
            grad: Any = param.grad
            if is_dtensor(grad):
                self._found.append((param, grad, _marks_of(grad)))
                sharded.setdefault(_spec(grad).mesh, {}).setdefault(_spec(grad).placements, []).append(grad)
        plain = [param for param in params if param.grad is not None and not is_dtensor(param.grad)]
        self._plain = _Part(make, plain)
        self._meshes = [
            (mesh, [self._part(make, mesh, *alike) for alike in sharded[mesh].items()])
            for mesh in sorted(sharded, key=lambda mesh: int(mesh.size()))
        ]
        self._parts = [self._plain, *chain.from_iterable(parts for _, parts in self._meshes)]

    def _part(self, make: Callable[[list[list[Any]]], Any], mesh: Any, placements: Any, grads: list[Any]) -> _Part:
        if any(placement.is_partial() for placement in placements):
            self._partial += map(local_of, grads)
            placements = [_replicate() if placement.is_partial() else placement for placement in placements]
            grads = [grad.redistribute(placements=placements) for grad in grads]
        holders = [_Holder(local_of(grad)) for grad in grads]
        return _Part(make, holders, _is_first(mesh, [placement.is_replicate() for placement in placements]))

    def __len__(self) -> int:
        return len(self._found) + len(self._plain.tensors)

    def others(self) -> list[Tensor]:
        """Of what this process holds, that which is not plain memory of the CPU."""
        return [grad for part in self._parts for grad in part.others]

    def samples(self) -> list[Tensor]:
        """The first of each dtype and device, of what this process holds."""
        return [grad for part in self._parts for grad in part.grads.samples()]

    def sum_squares(self, of_others: Sequence[float], grad_scale: float | None) -> float:
        """The sum of all squares, in all processes."""
        rest = iter(of_others)
        return self._total(lambda part: part.grads.sum_squares(list(islice(rest, len(part.others))), grad_scale))

    def _total(self, squares_of: Callable[[_Part], float]) -> float:
        total = squares_of(self._plain)
        for mesh, parts in self._meshes:
            copy = total if _is_first(mesh, [True] * mesh.ndim) or not math.isfinite(total) else 0.0
            total = _all(mesh, ordered_sum([copy, *(part.counted(squares_of(part)) for part in parts)]), ordered_sum)
        return total

    def largest(self, grad_scale: float | None = None) -> float:
        """The largest magnitude of an element, in all processes, NaN if one of them is."""
        magnitude = _largest_of([largest(grad, grad_scale) for part in self._parts for grad in part.tensors])
        for mesh, _ in self._meshes:
            magnitude = _all(mesh, magnitude, _largest_of)
        return magnitude

    def norm_of_huge(self, grad_scale: float | None) -> float | None:
        """The norm where squares overflow float64, or None where an element is infinite or NaN in some process."""
        magnitude = self.largest(grad_scale)
        if not math.isfinite(magnitude):
            return None
        factor = 2.0 ** -math.frexp(magnitude)[1]
        total = self._total(lambda part: ordered_sum([sum_of_squares(x, grad_scale, factor) for x in part.tensors]))
        return math.sqrt(total) / factor

    def as_tensor(self, norm: float) -> Tensor:
        """The norm as a DTensor, of which each process of the largest mesh has a copy."""
        mesh = self._meshes[-1][0]
        first: Any = self._dtensors[0]
        dtype = functools.reduce(torch.promote_types, [x.dtype.to_real() for x in self.samples() or self._dtensors])
        local = torch.tensor(norm, dtype=dtype, device=local_of(first).device)
        replica: Tensor = type(first).from_local(local, mesh, [_replicate()] * mesh.ndim, run_check=False)
        return replica

    def scale(self, factor: float) -> None:
        """Multiply all but the others, in place."""
        for part in self._parts:
            part.grads.scale(factor)
        for local in self._partial:  # what was measured is a reduced copy of these
            local.mul_(factor)
        increment_version([grad for _, grad, _ in self._found])  # their own, which autograd looks at

    def are_plain(self) -> bool:
        """False."""
        return False

    def are_as_found(self) -> bool:
        """Whether each parameter has the gradient that was found, in the same memory, and not written since."""
        return bool(self._plain.grads.are_as_found()) and all(
            param.grad is grad and _marks_of(grad) == marks for param, grad, marks in self._found
        )


def _spec(tensor: Any) -> Any:
    return tensor._spec


def _marks_of(grad: Any) -> tuple[int, tuple[int, int]]:
    """What changes when a DTensor is written, or what this process holds of it."""
    return -1 if grad.is_inference() else grad._version, mark_of(local_of(grad))


def _replicate() -> Any:
    from torch.distributed.tensor import Replicate  # imported already where there is a DTensor

    return Replicate()


def _is_first(mesh: Any, dims: Iterable[bool]) -> bool:
    """Whether this process has coordinate 0 along each of the chosen mesh dimensions."""
    return all(place == 0 for place, chosen in zip(mesh.get_coordinate() or (), dims, strict=False) if chosen)


def _all(mesh: Any, number: float, combine: Callable[[list[float]], float]) -> float:
    """Combine a number that each process of a mesh has, along one dimension after the other."""
    if mesh.get_coordinate() is None:  # this process is not in the mesh
        return number
    for dim in range(mesh.ndim):
        size = mesh.size(dim)
        if size > 1:
            place = mesh.get_local_rank(dim)
            own = [number if i == place else 0.0 for i in range(size)]
            numbers = torch.tensor(own, dtype=torch.float64, device=mesh.device_type)
            torch.distributed.all_reduce(numbers, group=mesh.get_group(dim))
            number = combine(numbers.tolist())
    return number


def _largest_of(magnitudes: list[float]) -> float:
    return math.nan if any(map(math.isnan, magnitudes)) else max(magnitudes, default=0.0)
