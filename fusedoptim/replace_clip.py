"""Clipping of this package for code that calls torch's and cannot be changed."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

from fusedoptim.clip import clip_grad_norm_

_MODULES: tuple[Any, ...] = (torch.nn.utils, torch.nn.utils.clip_grad)


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
