"""RAdam."""

import math

from torch import Tensor

from fusedoptim.reference.arithmetic import arithmetic_dtype, decayed, lerp, load, or_zeros, store
from fusedoptim.reference.ieee import as_scalar, fma, power, sqrt
from fusedoptim.reference.rule import Rule, State


def radam(
    param: Tensor,
    grad: Tensor,
    state: State,
    step: float,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled_weight_decay: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""RAdam, rectified Adam.

    .. math::
        p &\leftarrow p (1 - \gamma \lambda) \text{ if decoupled, else } g \leftarrow g + \lambda p \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \rho_\infty &= 2 / (1 - \beta_2) - 1, \qquad
            \rho = \rho_\infty - 2 t \beta_2^t / (1 - \beta_2^t) \\
        r &= \sqrt{\frac{(\rho - 4)(\rho - 2) \rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2) \rho}} \\
        p &\leftarrow p - \frac{\gamma}{1 - \beta_1^t} \, m \cdot
            r \sqrt{1 - \beta_2^t} \Big/ \left( \sqrt{v} + \epsilon \right) \text{ if } \rho > 5 \text{, else without}
            \text{ the last factor and } r

    Args:
        param: p, any shape; bfloat16, float16, float32 or float64.
        grad: g, the shape of ``param``.
        state: ``exp_avg``, m; ``exp_avg_sq``, v. The shape of ``param``; zeros if missing.
        step: t, 1 in the first update.
        lr: The learning rate, gamma.
        betas: beta1 and beta2.
        eps: epsilon.
        weight_decay: lambda.
        decoupled_weight_decay: Shrink the parameter itself; otherwise it enters the gradient.

    Returns:
        The new parameter, and ``exp_avg`` and ``exp_avg_sq``. Each has the dtype and the layout of the tensor it
        replaces; new state those of ``param``.

    References:
        Liu et al. 2020, "On the Variance of the Adaptive Learning Rate and Beyond", algorithm 2; epsilon is torch's.
    """
    beta1, beta2 = betas
    old_avg, old_sq = (or_zeros(state.get(name), param) for name in ("exp_avg", "exp_avg_sq"))
    p, g, m, v = load(arithmetic_dtype(param), param, grad, old_avg, old_sq)
    if decoupled_weight_decay:
        p = p * as_scalar(1 - lr * weight_decay, p)
    else:
        g = decayed(g, p, weight_decay)
    m = lerp(m, g, 1 - beta1)
    v = fma(as_scalar(1 - beta2, p) * g, g, v * as_scalar(beta2, p))

    correction2 = 1 - power(beta2, step)
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * power(beta2, step) / correction2
    step_size = lr / (1 - power(beta1, step))
    if length > 5:
        rectification = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        step_size = step_size * math.sqrt(rectification) * math.sqrt(correction2)
        p = p + (as_scalar(-step_size, p) * m) / (sqrt(v) + as_scalar(eps, p))
    else:
        p = fma(m, -step_size, p)
    return store(p, param), {"exp_avg": store(m, old_avg), "exp_avg_sq": store(v, old_sq)}


RULE = Rule(
    radam,
    lambda group: ("step", "exp_avg", "exp_avg_sq"),
    non_negative=frozenset({"exp_avg_sq"}),
    filled_in=frozenset({"decoupled_weight_decay"}),
)
