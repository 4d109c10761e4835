"""Tensors in and out of the arithmetic of the reference, and its operations on several of them."""

import torch
from torch import Tensor

from fusedoptim.reference.ieee import as_scalar, fma


def arithmetic_dtype(param: Tensor) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def load(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """Widen to the arithmetic type; autograd does not follow."""
    return [x.detach().to(dtype) for x in tensors]


def store(x: Tensor, like: Tensor) -> Tensor:
    """Round to the dtype of ``like``, in its memory layout. Never an alias of ``x``."""
    return torch.empty_like(like, requires_grad=False).copy_(x)


def or_zeros(x: Tensor | None, like: Tensor) -> Tensor:
    """State that has not been created yet is zero."""
    return torch.zeros_like(like, requires_grad=False) if x is None else x


def lerp(start: Tensor, end: Tensor, weight: float) -> Tensor:
    """Return start + weight (end - start), computed from the nearer end."""
    w = as_scalar(weight, start)  # rounded before it is compared, and before 1 is subtracted
    return fma(end - start, w, start) if w < 0.5 else fma(end - start, w - 1, end)


def decayed(grad: Tensor, param: Tensor, weight_decay: float) -> Tensor:
    """Return the gradient with weight decay in it, g + lambda p."""
    weight = as_scalar(weight_decay, param)
    return fma(param, weight, grad) if weight != 0 else grad


def maximum(a: Tensor, b: Tensor) -> Tensor:
    """Return the larger, NaN if either is NaN."""
    return torch.where((b > a) | b.isnan(), b, a)
