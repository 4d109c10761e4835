"""Adan."""

import math

import torch
from torch import Tensor

from fusedoptim.reference.arithmetic import arithmetic_dtype, lerp, load, or_zeros, store
from fusedoptim.reference.ieee import as_scalar, fma, power, sqrt
from fusedoptim.reference.rule import Rule, State

_STATES = ("exp_avg", "exp_avg_sq", "exp_avg_diff", "neg_pre_grad")


def adan(
    param: Tensor,
    grad: Tensor,
    state: State,
    step: float,
    *,
    lr: float,
    betas: tuple[float, float, float],
    eps: float,
    weight_decay: float,
    no_prox: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Adan, adaptive Nesterov momentum.

    .. math::
        d &= g - g_{t-1}, \text{ in the first step } 0 \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        u &\leftarrow \beta_2 u + (1 - \beta_2) d \\
        v &\leftarrow \beta_3 v + (1 - \beta_3) (g + \beta_2 d)^2 \\
        p &\leftarrow \left( p - \gamma \left( \frac{m}{1 - \beta_1^t} + \frac{\beta_2 u}{1 - \beta_2^t} \right)
            \Big/ \left( \sqrt{v} \big/ \sqrt{1 - \beta_3^t} + \epsilon \right) \right) \Big/ (1 + \gamma \lambda)

    With ``no_prox`` the first p is multiplied by :math:`1 - \gamma \lambda`, and nothing is divided at the end.

    Args:
        param: p, any shape; bfloat16, float16, float32 or float64.
        grad: g, the shape of ``param``.
        state: ``exp_avg``, m; ``exp_avg_sq``, v; ``exp_avg_diff``, u; ``neg_pre_grad``, the last gradient, negated. The
            shape of ``param``; zeros if missing.
        step: t, 1 in the first update.
        lr: The learning rate, gamma.
        betas: beta1, beta2 and beta3.
        eps: epsilon.
        weight_decay: lambda.
        no_prox: Decay as AdamW does.

    Returns:
        The new parameter and its state. Each has the dtype and the layout of the tensor it replaces; new state those of
        ``param``.

    References:
        Xie, Zhou, Li, Lin & Yan 2024, "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models",
        algorithm 1.
    """
    beta1, beta2, beta3 = betas
    old = {name: or_zeros(state.get(name), param) for name in _STATES}
    p, g, m, v, u, negated = load(arithmetic_dtype(param), param, grad, *old.values())
    diff = torch.zeros_like(g) if step == 1 else negated + g
    m = lerp(m, g, 1 - beta1)
    u = lerp(u, diff, 1 - beta2)
    ahead = fma(diff, beta2, g)
    v = fma(as_scalar(1 - beta3, p) * ahead, ahead, v * as_scalar(beta3, p))
    denominator = sqrt(v) / as_scalar(math.sqrt(1 - power(beta3, step)), p) + as_scalar(eps, p)
    of_grad = m * as_scalar(-(lr / (1 - power(beta1, step))), p)
    update = fma(u, -(lr * beta2 / (1 - power(beta2, step))), of_grad) / denominator
    p = p * as_scalar(1 - lr * weight_decay if no_prox else 1.0, p) + update
    shrink = as_scalar(1.0 if no_prox else 1 + lr * weight_decay, p)
    p = p / shrink if shrink != 1 else p
    moments = dict(zip(_STATES, (m, v, u, 0 - g), strict=True))
    return store(p, param), {name: store(x, old[name]) for name, x in moments.items()}


RULE = Rule(
    adan,
    lambda group: ("step", *_STATES),
    non_negative=frozenset({"exp_avg_sq"}),
    exact=frozenset({"neg_pre_grad"}),
)
