"""What a step does to gradients and parameters besides its rule: unscale, clip, average, and sum up squares."""

import torch
from torch import Tensor

from fusedoptim.reference.arithmetic import arithmetic_dtype, lerp, load, store
from fusedoptim.reference.ieee import as_scalar

_SUM_LANES, _SUM_UNIT = 128, 4096


def prepare_grad(grad: Tensor, *, maximize: bool = False, grad_scale: float | None = None, clip: float = 1.0) -> Tensor:
    """Return the gradient as a rule wants it: divided by ``grad_scale``, times ``clip``, negated if ``maximize``.

    A bfloat16 or float16 gradient comes back as float32: only what is stored is rounded to less. What is clipped is
    rounded to the dtype of the gradient all the same, as if it had been stored.
    """
    (g,) = load(arithmetic_dtype(grad), grad)
    if grad_scale is not None:
        g = g / as_scalar(grad_scale, g)
    if clip != 1.0:
        g = (g * as_scalar(clip, g)).to(grad.dtype).to(g.dtype)
    return -g if maximize else g


def average(old: Tensor | None, param: Tensor, decay: float) -> Tensor:
    """Return the exponential moving average of a parameter, ``lerp(old, param, 1 - decay)``; at first the parameter."""
    if old is None:
        return store(param.detach(), param)
    a, p = load(arithmetic_dtype(param), old, param)
    return store(lerp(a, p, 1 - decay), old)


def ordered_sum(values: Tensor) -> Tensor:
    """Add float64 values along the last dimension, in the order that a norm's bits depend on.

    The i-th value is added, in order, to lane ``i % 128``; then the upper half of the lanes to the lower, until one is
    left.
    """
    rows = -(-values.shape[-1] // _SUM_LANES)
    padded = torch.nn.functional.pad(values, (0, rows * _SUM_LANES - values.shape[-1]))
    lanes = torch.zeros_like(padded[..., :_SUM_LANES]) if rows else values.new_zeros(*values.shape[:-1], _SUM_LANES)
    for row in range(rows):
        lanes = lanes + padded[..., row * _SUM_LANES : (row + 1) * _SUM_LANES]
    while lanes.shape[-1] > 1:
        lanes = lanes[..., : lanes.shape[-1] // 2] + lanes[..., lanes.shape[-1] // 2 :]
    return lanes[..., 0]


def sum_of_squares(grad: Tensor) -> Tensor:
    """Add the squares of a gradient's elements, each rounded to float64, in the order of its dimensions.

    ``ordered_sum`` adds those of each 4096 elements, and then what these have given.
    """
    wide = grad.detach().reshape(-1).double()
    units = -(-wide.numel() // _SUM_UNIT)
    squares = torch.nn.functional.pad(wide * wide, (0, units * _SUM_UNIT - wide.numel()))
    return ordered_sum(ordered_sum(squares.reshape(units, _SUM_UNIT)))
