"""RMSprop."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, zeros_like

from fusedoptim.reference.arithmetic import arithmetic_dtype, decayed, lerp, load, maximum, or_zeros, store
from fusedoptim.reference.ieee import as_scalar, fma, sqrt
from fusedoptim.reference.rule import Rule, State


def rmsprop(
    param: Tensor,
    grad: Tensor,
    state: State,
    step: float,
    *,
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    centered: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""RMSprop, with momentum, and ``centered`` on the mean of the gradients.

    .. math::
        g &\leftarrow g + \lambda p \\
        v &\leftarrow \alpha v + (1 - \alpha) g^2 \\
        a &\leftarrow \alpha a + (1 - \alpha) g, \quad r = \sqrt{\max(v - a^2, 0)} + \epsilon
            \text{ if centered, else } r = \sqrt{v} + \epsilon \\
        b &\leftarrow \mu b + g / r, \quad p \leftarrow p - \gamma b
            \text{ with momentum, else } p \leftarrow p - \gamma g / r

    Args:
        param: p, any shape; bfloat16, float16, float32 or float64.
        grad: g, the shape of ``param``.
        state: ``square_avg``, v; ``momentum_buffer``, b, read if ``momentum`` is above 0; ``grad_avg``, a, read if
            ``centered``. The shape of ``param``; zeros if missing.
        step: Not used.
        lr: The learning rate, gamma.
        alpha: How much of the averages is kept.
        eps: epsilon.
        weight_decay: lambda, added to the gradient.
        momentum: mu.
        centered: Divide by the standard deviation in place of the root of the mean square. torch's own does not keep
            rounding from making the variance negative, and the parameter NaN.

    Returns:
        The new parameter, and the state named above. Each has the dtype and the layout of the tensor it replaces; new
        state those of ``param``.

    References:
        Hinton 2012, "Neural Networks for Machine Learning", lecture 6e.
        Graves 2013, "Generating Sequences With Recurrent Neural Networks", equations 38 to 45, for ``centered``.
    """
    names = _states({"momentum": momentum, "centered": centered})[1:]
    old = {name: or_zeros(state.get(name), param) for name in names}
    p, g, *loaded = load(arithmetic_dtype(param), param, grad, *old.values())
    new = dict(zip(names, loaded, strict=True))
    g = decayed(g, p, weight_decay)
    new["square_avg"] = fma(as_scalar(1 - alpha, p) * g, g, new["square_avg"] * as_scalar(alpha, p))
    variance = new["square_avg"]
    if centered:
        new["grad_avg"] = a = lerp(new["grad_avg"], g, 1 - alpha)
        variance = maximum(zeros_like(a), fma(-a, a, variance))
    root = sqrt(variance) + as_scalar(eps, p)
    if momentum > 0:
        new["momentum_buffer"] = new["momentum_buffer"] * as_scalar(momentum, p) + g / root
        p = fma(new["momentum_buffer"], -lr, p)
    else:
        p = p + (as_scalar(-lr, p) * g) / root
    return store(p, param), {name: store(x, old[name]) for name, x in new.items()}


def _states(group: Mapping[str, Any]) -> tuple[str, ...]:
    buffer = ("momentum_buffer",) if group["momentum"] > 0 else ()
    return ("step", "square_avg", *buffer, *(("grad_avg",) if group["centered"] else ()))


RULE = Rule(rmsprop, _states, non_negative=frozenset({"square_avg"}), filled_in=frozenset({"momentum", "centered"}))
