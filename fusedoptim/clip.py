"""Clipping by the global norm: one pass reads all gradients, and the step that follows multiplies as it goes."""

from __future__ import annotations

import functools
import math
import operator
import types
import warnings
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_ as _torch_clip
from torch.nn.utils import get_total_norm

from fusedoptim import backend, modes, native, reference
from fusedoptim.dtensor import is_dtensor

_PLAIN = (Tensor, torch.nn.Parameter)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Clip gradients by their global norm, as ``torch.nn.utils.clip_grad_norm_``, in half of its passes or fewer.

    The squares are added in float64, in an order that no number of threads changes. Gradients that need no clipping are
    not written.

    Args:
        parameters: Tensors, or one, whose ``grad`` is clipped; of any shape, dtype and device.
        max_norm: The largest norm that is left, in the unit of the gradients.
        norm_type: p of the p-norm, ``math.inf`` for the largest magnitude. All but 2 are measured by torch.
        error_if_nonfinite: Raise if the norm is infinite or NaN.
        foreach: As torch's. Gradients on the CPU are always taken together.

    Returns:
        The norm before clipping, 0-dimensional, on the device of the first gradient.

    Raises:
        RuntimeError: The norm is not finite, and ``error_if_nonfinite`` is set.
    """
    if torch.compiler.is_dynamo_compiling() or modes.watch_operations():
        return _torch_clip(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    else:
        is_generator = isinstance(parameters, types.GeneratorType)
        parameters = list(parameters)
        if is_generator and len(parameters) == 0:
            warnings.warn("`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=2)
    with torch.no_grad(), modes.without_function_modes() if modes.function_mode_count() else nullcontext():
        grads = GradNorm([parameters], norm_type)
        if foreach or any(is_dtensor(grad) for grad in grads.others):
            return _torch_clip(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
        grads.measure()
        if error_if_nonfinite:
            grads.check_finite()
        grads.scale(grads.coefficient(float(max_norm)))
        return grads.as_tensor()


class GradNorm:
    """The norm of the gradients of some parameters, as they are when this is made.

    Args:
        lists: Lists of parameters.
        norm_type: p of the p-norm.

    Attributes:
        others: The gradients that are not plain memory of the CPU.
        norm: In float64, before clipping.
    """

    def __init__(self, lists: Iterable[Iterable[Tensor]], norm_type: float = 2.0) -> None:
        self._lists = [list(params) for params in lists]
        self._grads: Any = native.grads(self._lists) if backend.in_use == "native" else _ReferenceGrads(self._lists)
        self.norm_type = float(norm_type)
        self.others: list[Tensor] = self._grads.others()
        self._torchs: Tensor | None = None
        self.norm = math.nan

    def measure(self, grad_scale: float | None = None) -> None:
        """Find the norm, of quotients by ``grad_scale``, each rounded to the gradient's dtype, if that is given."""
        if self.norm_type == 2.0 or len(self._grads) == 0:
            of_others = [_sum_of_squares(grad, grad_scale) for grad in self.others]
            self.norm = math.sqrt(self._grads.sum_squares(of_others, grad_scale))
        else:
            grads = [p.grad for params in self._lists for p in params if p.grad is not None]
            grads = grads if grad_scale is None else [grad / grad_scale for grad in grads]
            self._torchs = get_total_norm(grads, self.norm_type)
            self.norm = float(self._torchs)

    def are_plain(self) -> bool:
        """Whether each gradient is plain memory of the CPU, of a dtype that the kernels take."""
        return bool(self._grads.are_plain())

    def dtypes(self) -> set[torch.dtype]:
        """Those of the gradients."""
        return {grad.dtype for grad in self._grads.samples()}

    def unscale(self, grad_scale: float) -> None:
        """Divide the gradients, which all are plain, in place, and find the norm of the quotients in the same pass."""
        self.norm = math.sqrt(self._grads.unscale(grad_scale))

    def as_tensor(self) -> Tensor:
        """The norm as torch returns it, on the device of the first gradient, in the type common to all."""
        samples = self._grads.samples()
        if self._torchs is not None or not samples:
            return torch.tensor(0.0) if self._torchs is None else self._torchs
        dtype = functools.reduce(torch.promote_types, [grad.dtype.to_real() for grad in samples])
        return torch.tensor(self.norm, dtype=dtype, device=samples[0].device)

    def check_finite(self) -> None:
        """Raise what torch raises if the norm is not finite."""
        if not math.isfinite(self.norm):
            raise RuntimeError(
                f"The total norm of order {self.norm_type} for gradients from `parameters` is non-finite, so it cannot "
                "be clipped. To disable this error and scale the gradients by the non-finite norm anyway, set "
                "`error_if_nonfinite=False`"
            )

    def coefficient(self, max_norm: float) -> float:
        """What gradients are multiplied by so that their norm is at most ``max_norm``."""
        return min(max_norm / (self.norm + 1e-6), 1.0)  # NaN stays NaN, as in torch

    def scale(self, coefficient: float) -> None:
        """Multiply the gradients in place."""
        if coefficient == 1.0:
            return
        self._grads.scale(coefficient)
        for grad in self.others:
            grad.mul_(coefficient)

    def is_of(self, lists: Sequence[Sequence[Tensor]]) -> bool:
        """Whether these are the parameters."""
        return [len(params) for params in lists] == [len(params) for params in self._lists] and all(
            all(map(operator.is_, params, own)) for params, own in zip(lists, self._lists, strict=True)
        )

    def is_still_theirs(self) -> bool:
        """Whether the parameters have the same gradients, none of which was written since, as torch counts writes."""
        return bool(self._grads.are_as_found()) and len(self._grads) == sum(
            p.grad is not None for params in self._lists for p in params
        )


class _ReferenceGrads:
    """As ``_C.Grads``, of which all are to be measured by the reference."""

    def __init__(self, lists: list[list[Tensor]]) -> None:
        self._found = [(p, p.grad, _version(p.grad)) for params in lists for p in params if p.grad is not None]
        self._beginnings: list[tuple[int, float]] | None = None  # after unscale(); see csrc/python/grads.h

    def __len__(self) -> int:
        return len(self._found)

    def others(self) -> list[Tensor]:
        return [grad for _, grad, _ in self._found]

    samples = others

    def sum_squares(self, of_others: list[float], _: float | None) -> float:
        return float(reference.ordered_sum(torch.tensor(of_others, dtype=torch.float64, device="cpu")))

    def are_plain(self) -> bool:
        return all(_is_plain(grad) for grad in self.others())

    def unscale(self, grad_scale: float) -> float:
        for grad in self.others():
            grad.copy_(reference.prepare_grad(grad, grad_scale=grad_scale))
        self._found = [(param, grad, _version(grad)) for param, grad, _ in self._found]
        self._beginnings = self._look_at_beginnings()
        return self.sum_squares([_sum_of_squares(grad, None) for grad in self.others()], None)

    def _look_at_beginnings(self) -> list[tuple[int, float]]:
        return [(grad.data_ptr(), _sum_of_squares(grad.flatten()[:4096], None)) for grad in self.others()]

    def scale(self, factor: float) -> None:
        pass

    def are_as_found(self) -> bool:
        return all(param.grad is grad and _version(grad) == version for param, grad, version in self._found) and (
            self._beginnings is None or self._beginnings == self._look_at_beginnings()
        )


def _is_plain(grad: Tensor) -> bool:
    return (
        type(grad) in _PLAIN
        and grad.device.type == "cpu"
        and grad.layout == torch.strided
        and grad.dtype in _DTYPES
        and not grad.is_neg()
        and all(stride != 0 or size <= 1 for size, stride in zip(grad.shape, grad.stride(), strict=True))
    )


def _version(grad: Tensor) -> int:
    return -1 if grad.is_inference() else grad._version


def _sum_of_squares(grad: Tensor, grad_scale: float | None) -> float:
    """Of one gradient that is not plain memory of the CPU."""
    if grad_scale is not None:
        scaled = reference.prepare_grad(grad, grad_scale=grad_scale) if type(grad) in _PLAIN else grad / grad_scale
        grad = scaled.to(grad.dtype)
    if type(grad) in _PLAIN and grad.layout == torch.strided:
        return float(reference.sum_of_squares(torch.view_as_real(grad.resolve_conj()) if grad.is_complex() else grad))
    if grad.is_sparse:
        return _sum_of_squares(grad.coalesce().values(), None)
    dtype = torch.complex128 if grad.is_complex() else torch.float64
    norm: Any = torch.linalg.vector_norm(grad, 2, dtype=dtype)
    return float(norm.full_tensor() if is_dtensor(norm) else norm) ** 2


@contextmanager
def clipped(lists: Iterable[Iterable[Tensor]], coefficients: Iterable[Any]) -> Generator[None]:
    """For a block, give the parameters of each list gradients that are clipped, for torch's own step."""
    before = []
    try:
        for params, coefficient in zip(lists, coefficients, strict=True):
            for param in params if isinstance(coefficient, Tensor) or coefficient != 1.0 else ():
                if param.grad is not None:
                    before.append((param, param.grad))
                    param.grad = param.grad * coefficient
        yield
    finally:
        for param, grad in before:
            param.grad = grad
