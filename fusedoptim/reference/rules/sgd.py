"""Stochastic gradient descent."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fusedoptim.reference.arithmetic import arithmetic_dtype, load, store
from fusedoptim.reference.ieee import as_scalar, fma
from fusedoptim.reference.rule import Rule, State


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
    dtype = arithmetic_dtype(param)
    p, g = load(dtype, param, grad)
    if weight_decay != 0:
        g = fma(p, weight_decay, g)
    if momentum != 0:
        change_weight, keep = as_scalar(1 - dampening, p), as_scalar(momentum, p)
        old_buffer = state.get("momentum_buffer")
        if old_buffer is None:
            buffer = g
        else:
            (b,) = load(dtype, old_buffer)
            buffer = fma(g, change_weight, b * keep)
        g = fma(buffer, keep, g) if nesterov else buffer
        new_state["momentum_buffer"] = store(buffer, param if old_buffer is None else old_buffer)
    p = fma(g, -lr, p)
    return store(p, param), new_state


def _states(group: Mapping[str, Any]) -> tuple[str, ...]:
    return ("momentum_buffer",) if group["momentum"] != 0 else ()


RULE = Rule(sgd, _states, filled_in=frozenset({"nesterov"}))
