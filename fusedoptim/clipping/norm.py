"""The global norm of gradients of any kind on any device, in one pass over them."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from fusedoptim import backend
from fusedoptim.clipping.device_norm import DeviceNorm, on_device
from fusedoptim.clipping.grads import check_finite, coefficient, largest, ordered_sum, sum_of_squares
from fusedoptim.clipping.mesh_norm import MeshGrads, grads_of, replicated

_WIDE = (torch.float64, torch.complex128)  # whose squares may overflow float64


class GradNorm:
    """The norm of the gradients of some parameters, as they are when this is made.

    Args:
        lists: Lists of parameters.
        norm_type: p of the p-norm.
        by_reference: Measure them by the reference, whatever the backend.

    Attributes:
        others: The gradients that are not plain memory of the CPU.
        norm: In float64, before clipping.
        is_finite: Whether all gradients are, as far as ``norm_type`` lets it be known.
        is_sharded: Whether parameters are DTensors; then to measure is a collective.
    """

    def __init__(self, lists: Iterable[Iterable[Tensor]], norm_type: float = 2.0, by_reference: bool = False) -> None:
        self._lists = [list(params) for params in lists]
        self.by_reference = by_reference
        is_native = backend.in_use == "native" and not by_reference
        self._grads: Any = grads_of(self._lists, is_native)
        self.is_sharded = isinstance(self._grads, MeshGrads)
        self.norm_type = float(norm_type)
        self.others: list[Tensor] = self._grads.others()
        self._torchs: Tensor | None = None
        self.norm = math.nan
        self.is_finite = False

    def __len__(self) -> int:
        return len(self._grads)

    def measure(self, grad_scale: float | None = None) -> None:
        """Find the norm, of quotients by ``grad_scale``, each rounded to the gradient's dtype, if that is given."""
        if self.is_sharded and self.norm_type == math.inf:
            self.norm = self._grads.largest()  # torch's raises in a process whose shard is empty, and the others wait
            self.is_finite = math.isfinite(self.norm)
        elif self.norm_type == 2.0 or len(self._grads) == 0:
            of_others = [sum_of_squares(grad, grad_scale) for grad in self.others]
            self.norm = math.sqrt(self._grads.sum_squares(of_others, grad_scale))
            self.is_finite = math.isfinite(self.norm)
            if not self.is_finite and self.is_sharded:  # in all processes, whatever the dtypes here
                norm = self._grads.norm_of_huge(grad_scale)
                self.norm, self.is_finite = (self.norm, False) if norm is None else (norm, True)
            elif not self.is_finite and any(grad.dtype in _WIDE for grad in self._grads.samples()):
                self._measure_huge(grad_scale)
        else:
            self._torchs = replicated(get_total_norm(self._all(), self.norm_type))
            self.norm = float(self._torchs)
            self.is_finite = math.isfinite(self.norm)

    def _all(self) -> list[Tensor]:
        return [p.grad for params in self._lists for p in params if p.grad is not None]

    def _measure_huge(self, grad_scale: float | None) -> None:
        """Find the norm where squares overflow float64, of gradients scaled down by a power of two."""
        grads = self._all()
        magnitudes = [largest(grad, grad_scale) for grad in grads]
        self.is_finite = all(map(math.isfinite, magnitudes))
        if self.is_finite:
            factor = 2.0 ** -math.frexp(max(magnitudes))[1]
            squares = [sum_of_squares(grad, grad_scale, factor) for grad in grads]
            self.norm = math.sqrt(ordered_sum(squares)) / factor

    def are_plain(self) -> bool:
        """Whether each gradient is plain memory of the CPU, of a dtype that the kernels take."""
        return bool(self._grads.are_plain())

    def dtypes(self) -> set[torch.dtype]:
        """Those of the gradients."""
        return {grad.dtype for grad in self._grads.samples()}

    def unscale(self, grad_scale: float) -> None:
        """Divide the gradients, which all are plain, in place, and find the norm of the quotients in the same pass."""
        self.norm = math.sqrt(self._grads.unscale(grad_scale))
        self.is_finite = math.isfinite(self.norm)

    def as_tensor(self) -> Tensor:
        """The norm as torch returns it, on the device of the first gradient, in the type common to all.

        A DTensor where parameters are, of which each process has a copy.
        """
        if self._torchs is not None:
            return self._torchs
        if self.is_sharded:
            replica: Tensor = self._grads.as_tensor(self.norm)
            return replica
        samples = self._grads.samples()
        return common_scalar(self.norm, [grad.dtype for grad in samples], samples[0].device if samples else None)

    def check_finite(self) -> None:
        """Raise what torch raises if the norm is not finite."""
        check_finite(self.norm, self.norm_type)

    def coefficient(self, max_norm: float) -> float:
        """What gradients are multiplied by so that their norm is at most ``max_norm``."""
        return coefficient(self.norm, max_norm)

    def clip(self, max_norm: float) -> None:
        """Multiply the gradients in place, so that their norm is at most ``max_norm``."""
        self.scale(self.coefficient(max_norm))

    def scale(self, coefficient: float) -> None:
        """Multiply the gradients in place."""
        if coefficient == 1.0:
            return
        self._grads.scale(coefficient)
        for grad in self.others:
            grad.mul_(coefficient)

    def is_still_theirs(self, lists: Iterable[Iterable[Tensor]]) -> bool:
        """Whether these are the parameters, with the same gradients, none of which was written since.

        Writes are known as torch counts them, so those to ``p.grad.data`` are not.
        """
        before, now = list(chain.from_iterable(self._lists)), list(chain.from_iterable(lists))
        return (
            len(before) == len(now)
            and all(map(operator.is_, before, now))
            and bool(self._grads.are_as_found())
            and len(self._grads) == sum(p.grad is not None for p in now)
        )


def common_scalar(norm: float, dtypes: list[torch.dtype], device: torch.device | None) -> Tensor:
    """A norm as torch returns it, in the type common to the gradients."""
    if not dtypes:
        return torch.tensor(0.0)
    dtype = functools.reduce(torch.promote_types, [dtype.to_real() for dtype in dtypes])
    return torch.tensor(norm, dtype=dtype, device=device)


def norm_of(lists: Iterable[Iterable[Tensor]], norm_type: float = 2.0, optimizer: Any = None) -> GradNorm | DeviceNorm:
    """The norm of gradients, not measured; on the device, where all of them lie on one.

    Args:
        lists: Lists of parameters.
        norm_type: p of the p-norm.
        optimizer: Whose parameters they are, if of any.
    """
    norm = GradNorm(lists, norm_type)
    return (on_device(norm, optimizer) or norm) if norm.others else norm


@contextmanager
def clipped(
    lists: Iterable[Iterable[Tensor]], coefficients: Iterable[Any], grad_scale: float | Tensor | None = None
) -> Generator[None]:
    """Within the block, each parameter's ``grad`` is a clipped copy, for torch's own step.

    With ``grad_scale`` that step divides the gradients and leaves them divided.
    """
    before = []
    try:
        for params, coefficient in zip(lists, coefficients, strict=True):
            for param in params if isinstance(coefficient, Tensor) or coefficient != 1.0 else ():
                if param.grad is not None:
                    factor = coefficient.to(param.grad.device) if isinstance(coefficient, Tensor) else coefficient
                    before.append((param, param.grad))
                    param.grad = (param.grad * factor).to(param.grad.dtype)
        yield
        if grad_scale is not None:
            for _, grad in before:
                grad.detach().div_(grad_scale)
    finally:
        for param, grad in before:
            param.grad = grad
