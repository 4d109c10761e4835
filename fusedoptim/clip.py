"""Clipping by the global norm, in the place of torch's function."""

from __future__ import annotations

import types
import warnings
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_ as _torch_clip

from fusedoptim.clipping.norm import GradNorm, norm_of
from fusedoptim.torch_internals import modes

_MODULES: tuple[Any, ...] = (torch.nn.utils, torch.nn.utils.clip_grad)


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Clip gradients by their global norm, as ``torch.nn.utils.clip_grad_norm_``, in half of its passes or fewer.

    The squares are added in float64, in an order that no number of threads changes. Gradients that need no clipping are
    not written. Where parameters are DTensors, the norm is over all processes, each of which must call this.

    Args:
        parameters: Tensors, or one, whose ``grad`` is clipped; of any shape, dtype and device.
        max_norm: The largest norm that is left, in the unit of the gradients.
        norm_type: p of the p-norm, ``math.inf`` for the largest magnitude. All but 2 are measured by torch.
        error_if_nonfinite: Raise if the norm is infinite or NaN.
        foreach: As torch's. Gradients on the CPU, and DTensors, are always taken together.

    Returns:
        The norm before clipping, 0-dimensional, on the device of the first gradient; as torch's, a DTensor where
        parameters are, of which each process has a copy.

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
    with torch.no_grad(), modes.no_function_modes():
        grads = norm_of([parameters], norm_type)
        if foreach and grads.others and not (isinstance(grads, GradNorm) and grads.is_sharded):
            return _torch_clip(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
        grads.measure()
        if error_if_nonfinite:
            grads.check_finite()
        grads.clip(float(max_norm))
        return grads.as_tensor()


@contextmanager
def replace_clip_grad_norm() -> Generator[None]:
    """For a block, put ``fusedoptim.clip_grad_norm_`` in place of ``torch.nn.utils.clip_grad_norm_``, for all threads.

    For trainers that clip by themselves. It reaches callers that look the name up in ``torch.nn.utils`` when they clip,
    and none that imported the function before. Blocks may be nested.

    Example:
        >>> import fusedoptim, torch
        >>> with fusedoptim.replace_clip_grad_norm():
        ...     torch.nn.utils.clip_grad_norm_ is fusedoptim.clip_grad_norm_
        True
        >>> torch.nn.utils.clip_grad_norm_ is fusedoptim.clip_grad_norm_
        False
    """
    before = [(module, module.clip_grad_norm_) for module in _MODULES]
    try:
        for module in _MODULES:
            module.clip_grad_norm_ = clip_grad_norm_
        yield
    finally:
        for module, function in before:
            module.clip_grad_norm_ = function
