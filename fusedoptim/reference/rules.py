"""The optimizers as the papers write them: one pure function per rule, in plain torch.

This is the specification: the compiled kernels must return the same bits. Every function has the form::

    new_param, new_state = update(param, grad, state, step, **options)

for one parameter. The inputs are never modified. ``state`` maps the names that ``torch.optim`` uses to
tensors; an entry that is missing or None has not been created yet. ``step`` counts the updates of this
parameter, this one included. The options are those of the parameter group, as Python numbers
(see ``Rule.options``).

Arithmetic is in float64 if the parameter is float64, else in float32, and each operation rounds to nearest
even; ``fma(a, b, c)`` is a * b + c rounded once. Constants are computed in double and rounded once to the
arithmetic type. bfloat16 and float16 are widened when read and rounded once when stored.
"""

import functools
import inspect
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusedoptim.reference.ieee import as_scalar, fma, power, sqrt

State = Mapping[str, Tensor | None]

_SUM_LANES, _SUM_UNIT = 128, 4096


def sgd(
    param: Tensor,
    grad: Tensor,
    state: State,
    step: float,
    *,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Stochastic gradient descent with momentum and weight decay.

    .. math::
        g &\leftarrow g + \lambda p \\
        b &\leftarrow \mu b + (1 - \tau) g \qquad (b = g \text{ on the first step}) \\
        g &\leftarrow g + \mu b \text{ if nesterov, else } b \\
        p &\leftarrow p - \gamma g

    Args:
        param: p, any shape; bfloat16, float16, float32 or float64.
        grad: g, the shape of ``param``.
        state: ``momentum_buffer``, b, the shape of ``param``; read if ``momentum`` is not 0.
        step: Not used.
        lr: The learning rate, gamma.
        momentum: mu.
        dampening: tau; not applied on the first step.
        weight_decay: lambda, added to the gradient.
        nesterov: Look ahead along the momentum.

    Returns:
        The new parameter, and ``momentum_buffer`` if ``momentum`` is not 0. Each has the dtype and the layout
        of the tensor it replaces; a new ``momentum_buffer`` those of ``param``.

    References:
        Sutskever, Martens, Dahl & Hinton 2013, "On the importance of initialization and momentum in deep
        learning"; but here the learning rate multiplies the velocity, there the gradient.
    """
    new_state = {}
    dtype = _arithmetic_dtype(param)
    p, g = _load(dtype, param, grad)
    if weight_decay != 0:
        g = fma(p, weight_decay, g)
    if momentum != 0:
        change_weight, keep = as_scalar(1 - dampening, p), as_scalar(momentum, p)
        old_buffer = state.get("momentum_buffer")
        if old_buffer is None:
            buffer = g
        else:
            (b,) = _load(dtype, old_buffer)
            buffer = fma(g, change_weight, b * keep)
        g = fma(buffer, keep, g) if nesterov else buffer
        new_state["momentum_buffer"] = _store(buffer, param if old_buffer is None else old_buffer)
    p = fma(g, -lr, p)
    return _store(p, param), new_state


def adam(
    param: Tensor,
    grad: Tensor,
    state: State,
    step: float,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    amsgrad: bool,
    decoupled_weight_decay: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Adam; with ``decoupled_weight_decay`` AdamW; with ``amsgrad`` AMSGrad.

    .. math::
        p &\leftarrow p (1 - \gamma \lambda) \text{ if decoupled, else } g \leftarrow g + \lambda p \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        v &\leftarrow \hat v \leftarrow \max(\hat v, v) \text{ if amsgrad} \\
        p &\leftarrow p - \frac{\gamma}{1 - \beta_1^t} \, m \Big/
            \left( \sqrt{v} \big/ \sqrt{1 - \beta_2^t} + \epsilon \right)

    Args:
        param: p, any shape; bfloat16, float16, float32 or float64.
        grad: g, the shape of ``param``.
        state: ``exp_avg``, m; ``exp_avg_sq``, v; ``max_exp_avg_sq``, read if ``amsgrad``. The shape of
            ``param``; zeros if missing.
        step: t, 1 in the first update.
        lr: The learning rate, gamma.
        betas: beta1 and beta2.
        eps: epsilon.
        weight_decay: lambda.
        amsgrad: Divide by the largest v so far in place of v.
        decoupled_weight_decay: Shrink the parameter itself; otherwise it enters the gradient.

    Returns:
        The new parameter, and ``exp_avg``, ``exp_avg_sq`` and, if ``amsgrad``, ``max_exp_avg_sq``. Each has
        the dtype and the layout of the tensor it replaces; new state those of ``param``.

    References:
        Kingma & Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm 1.
        Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
        Reddi, Kale & Kumar 2018, "On the Convergence of Adam and Beyond", algorithm 2.
    """
    beta1, beta2 = betas
    bias_correction1 = 1 - power(beta1, step)
    bias_correction2 = 1 - power(beta2, step)
    step_size = lr / bias_correction1

    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 3 if amsgrad else 2]
    old_state = {name: _or_zeros(state.get(name), param) for name in names}
    p, g, m, v, *v_max = _load(_arithmetic_dtype(param), param, grad, *old_state.values())

    if weight_decay != 0 and decoupled_weight_decay:
        p = p * as_scalar(1 - lr * weight_decay, p)
    elif weight_decay != 0:
        g = fma(p, weight_decay, g)
    m = _lerp(m, g, 1 - beta1)
    v = fma(as_scalar(1 - beta2, p) * g, g, v * as_scalar(beta2, p))
    new_moments = [m, v]
    if amsgrad:
        v = _maximum(v_max[0], v)
        new_moments.append(v)
    denominator = sqrt(v) / as_scalar(math.sqrt(bias_correction2), p) + as_scalar(eps, p)
    p = p + (as_scalar(-step_size, p) * m) / denominator

    new_state = {name: _store(x, old_state[name]) for name, x in zip(names, new_moments, strict=True)}
    return _store(p, param), new_state


def _sgd_state(group: Mapping[str, Any]) -> tuple[str, ...]:
    return ("momentum_buffer",) if group["momentum"] != 0 else ()


def _adam_state(group: Mapping[str, Any]) -> tuple[str, ...]:
    return ("step", "exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))


@dataclass(frozen=True)
class Rule:
    """A rule's function and, for given options, the names of its state."""

    update: Callable[..., tuple[Tensor, dict[str, Tensor]]]
    own_state: Callable[[Mapping[str, Any]], tuple[str, ...]]

    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """What a parameter's state holds: what the rule keeps, and its average if the group asks for one."""
        names = self.own_state(group)
        return names if group.get("ema_decay") is None else (*names, "ema")

    def options(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entries of a parameter group that are options of this rule, as bools those annotated so.

        Raises:
            KeyError: The group lacks one of them.
        """
        kinds = _options_of(self.update).items()
        return {name: bool(group[name]) if kind is bool else group[name] for name, kind in kinds}


RULES: dict[str, Rule] = {"sgd": Rule(sgd, _sgd_state), "adam": Rule(adam, _adam_state)}


def prepare_grad(grad: Tensor, *, maximize: bool = False, grad_scale: float | None = None, clip: float = 1.0) -> Tensor:
    """Return the gradient as a rule wants it: divided by ``grad_scale``, times ``clip``, negated if ``maximize``.

    A bfloat16 or float16 gradient comes back as float32: only what is stored is rounded to less. What is clipped is
    rounded to the dtype of the gradient all the same, as if it had been stored.
    """
    (g,) = _load(_arithmetic_dtype(grad), grad)
    if grad_scale is not None:
        g = g / as_scalar(grad_scale, g)
    if clip != 1.0:
        g = (g * as_scalar(clip, g)).to(grad.dtype).to(g.dtype)
    return -g if maximize else g


def average(old: Tensor | None, param: Tensor, decay: float) -> Tensor:
    """Return the exponential moving average of a parameter, ``lerp(old, param, 1 - decay)``; at first the parameter."""
    if old is None:
        return _store(param.detach(), param)
    a, p = _load(_arithmetic_dtype(param), old, param)
    return _store(_lerp(a, p, 1 - decay), old)


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


@functools.cache
def _options_of(update: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(update).parameters.values()
    kinds = typing.get_type_hints(update)
    return {p.name: kinds[p.name] for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _arithmetic_dtype(param: Tensor) -> torch.dtype:
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def _load(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """Widen to the arithmetic type; autograd does not follow."""
    return [x.detach().to(dtype) for x in tensors]


def _store(x: Tensor, like: Tensor) -> Tensor:
    """Round to the dtype of ``like``, in its memory layout. Never an alias of ``x``."""
    return torch.empty_like(like, requires_grad=False).copy_(x)


def _or_zeros(x: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like, requires_grad=False) if x is None else x


def _lerp(start: Tensor, end: Tensor, weight: float) -> Tensor:
    """Return start + weight (end - start), computed from the nearer end."""
    w = as_scalar(weight, start)  # rounded before it is compared, and before 1 is subtracted
    return fma(end - start, w, start) if w < 0.5 else fma(end - start, w - 1, end)


def _maximum(a: Tensor, b: Tensor) -> Tensor:
    """Return the larger, NaN if either is NaN."""
    return torch.where((b > a) | b.isnan(), b, a)
