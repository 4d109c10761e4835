"""Sums of squares, largest magnitudes and scaling of single gradients, where the compiled module cannot do it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fusedoptim import reference
from fusedoptim.torch_internals.dtensor import is_dtensor

_PLAIN = (Tensor, torch.nn.Parameter)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class ReferenceGrads:
    """The interface of ``_C.Grads``, all measured by the reference."""

    def __init__(self, lists: list[list[Tensor]]) -> None:
        self._found = [(p, p.grad, mark_of(p.grad)) for params in lists for p in params if p.grad is not None]
        self._beginnings: list[float] | None = None  # after unscale(); see csrc/python/grads.h

    def __len__(self) -> int:
        return len(self._found)

    def others(self) -> list[Tensor]:
        """All."""
        return [grad for _, grad, _ in self._found]

    samples = others

    def sum_squares(self, of_others: list[float], _: float | None) -> float:
        """The sum of those of ``others``."""
        return ordered_sum(of_others)

    def scale(self, factor: float) -> None:
        """Nothing: the others are for the caller to scale."""

    def are_plain(self) -> bool:
        """Whether each is plain memory of the CPU, of a dtype that the kernels take."""
        return all(_is_plain(grad) for grad in self.others())

    def unscale(self, grad_scale: float) -> float:
        """Divide all in place, and return the sum of their squares."""
        for grad in self.others():
            grad.copy_(reference.prepare_grad(grad, grad_scale=grad_scale))
        self._found = [(param, grad, mark_of(grad)) for param, grad, _ in self._found]
        self._beginnings = self._look_at_beginnings()
        return self.sum_squares([sum_of_squares(grad, None) for grad in self.others()], None)

    def _look_at_beginnings(self) -> list[float]:
        return [sum_of_squares(grad.flatten()[:4096], None) for grad in self.others()]

    def are_as_found(self) -> bool:
        """Whether each parameter has the gradient that was found, in the same memory, and not written since."""
        return all(param.grad is grad and mark_of(grad) == mark for param, grad, mark in self._found) and (
            self._beginnings is None or self._beginnings == self._look_at_beginnings()
        )


def _is_plain(grad: Tensor) -> bool:
    return (
        _is_real(grad)
        and grad.device.type == "cpu"
        and grad.dtype in _DTYPES
        and not grad.is_neg()
        and all(stride != 0 or size <= 1 for size, stride in zip(grad.shape, grad.stride(), strict=True))
    )


def mark_of(grad: Tensor) -> tuple[int, int]:
    """What changes when a gradient is written, or gets other memory."""
    has_address = type(grad) in _PLAIN and grad.layout == torch.strided
    return -1 if grad.is_inference() else grad._version, grad.data_ptr() if has_address else 0


def ordered_sum(values: list[float]) -> float:
    """See ``reference.ordered_sum``."""
    return float(reference.ordered_sum(torch.tensor(values, dtype=torch.float64, device="cpu")))


def coefficient(norm: float, max_norm: float) -> float:
    """What gradients of a norm are multiplied by so that it is at most ``max_norm``."""
    return min(max_norm / (norm + 1e-6), 1.0)  # NaN stays NaN, as in torch


def check_finite(norm: float, norm_type: float) -> None:
    """Raise what torch raises if the norm of gradients is not finite."""
    if not math.isfinite(norm):
        raise RuntimeError(
            f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, so it cannot "
            "be clipped. To disable this error and scale the gradients by the non-finite norm anyway, set "
            "`error_if_nonfinite=False`"
        )


def _numbers(grad: Tensor, grad_scale: float | None) -> Tensor:
    """The elements of a gradient, divided and rounded, as real numbers unless it is a tensor subclass."""
    if grad_scale is not None:
        scaled = reference.prepare_grad(grad, grad_scale=grad_scale) if _is_real(grad) else grad / grad_scale
        grad = scaled.to(grad.dtype)
    if type(grad) in _PLAIN:
        grad = grad.coalesce().values() if grad.layout == torch.sparse_coo else grad
        grad = torch.view_as_real(grad.resolve_conj()) if grad.is_complex() else grad
    return grad


def _is_real(grad: Tensor) -> bool:
    return type(grad) in _PLAIN and grad.layout == torch.strided and not grad.is_complex()


def sum_of_squares(grad: Tensor, grad_scale: float | None, factor: float = 1.0) -> float:
    """Of one gradient, of any kind; of its elements times ``factor``, a power of two."""
    if grad.is_meta:
        return 0.0
    grad = _numbers(grad, grad_scale)
    if _is_real(grad):
        return float(reference.sum_of_squares(grad if factor == 1.0 else grad.double() * factor))
    wide = torch.complex128 if grad.is_complex() else torch.float64
    norm: Any = torch.linalg.vector_norm(grad if factor == 1.0 else grad.to(wide) * factor, 2, dtype=wide)
    return _float(norm) ** 2


def largest(grad: Tensor, grad_scale: float | None) -> float:
    """The largest magnitude of a gradient's elements, NaN if one of them is."""
    if grad.is_meta or grad.numel() == 0:
        return 0.0
    return _float(torch.linalg.vector_norm(_numbers(grad, grad_scale), math.inf))


def _float(norm: Any) -> float:
    return float(norm.full_tensor() if is_dtensor(norm) else norm)
