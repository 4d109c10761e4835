"""Adamax."""

from torch import Tensor

from fusedoptim.reference.arithmetic import arithmetic_dtype, decayed, lerp, load, maximum, or_zeros, store
from fusedoptim.reference.ieee import as_scalar, power
from fusedoptim.reference.rule import Rule, State


def adamax(
    param: Tensor,
    grad: Tensor,
    state: State,
    step: float,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Adamax.

    .. math::
        g &\leftarrow g + \lambda p \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        u &\leftarrow \max(\beta_2 u, |g| + \epsilon) \\
        p &\leftarrow p - \frac{\gamma}{1 - \beta_1^t} \, m / u

    Args:
        param: p, any shape; bfloat16, float16, float32 or float64.
        grad: g, the shape of ``param``.
        state: ``exp_avg``, m; ``exp_inf``, u. The shape of ``param``; zeros if missing.
        step: t, 1 in the first update.
        lr: The learning rate, gamma.
        betas: beta1 and beta2.
        eps: epsilon.
        weight_decay: lambda, added to the gradient.

    Returns:
        The new parameter, and ``exp_avg`` and ``exp_inf``. Each has the dtype and the layout of the tensor it replaces;
        new state those of ``param``.

    References:
        Kingma & Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm 2; epsilon is torch's.
    """
    beta1, beta2 = betas
    old_avg, old_inf = (or_zeros(state.get(name), param) for name in ("exp_avg", "exp_inf"))
    p, g, m, u = load(arithmetic_dtype(param), param, grad, old_avg, old_inf)
    g = decayed(g, p, weight_decay)
    m = lerp(m, g, 1 - beta1)
    u = maximum(u * as_scalar(beta2, p), g.abs() + as_scalar(eps, p))
    step_size = lr / (1 - power(beta1, step))
    p = p + (as_scalar(-step_size, p) * m) / u
    return store(p, param), {"exp_avg": store(m, old_avg), "exp_inf": store(u, old_inf)}


RULE = Rule(adamax, lambda group: ("step", "exp_avg", "exp_inf"), non_negative=frozenset({"exp_inf"}))
