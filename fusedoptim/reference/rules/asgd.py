"""ASGD."""

import torch
from torch import Tensor

from fusedoptim.reference.arithmetic import arithmetic_dtype, decayed, load, or_zeros, store
from fusedoptim.reference.ieee import as_scalar, divide, fma, power
from fusedoptim.reference.rule import Rule, State


def asgd(
    param: Tensor,
    grad: Tensor,
    state: State,
    step: float,
    *,
    lr: float,
    lambd: float,
    alpha: float,
    t0: float,
    weight_decay: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Averaged SGD.

    .. math::
        g &\leftarrow g + \lambda p \\
        p &\leftarrow p (1 - \Lambda \eta) - \eta g \\
        \bar p &\leftarrow \bar p + \mu (p - \bar p) \\
        \eta &\leftarrow \gamma / (1 + \Lambda \gamma t)^\alpha, \qquad \mu \leftarrow 1 / \max(1, t - t_0)

    Args:
        param: p, any shape; bfloat16, float16, float32 or float64.
        grad: g, the shape of ``param``.
        state: ``ax``, the average of p, the shape of ``param``; zeros if missing. ``eta`` and ``mu``, one number each.
        step: t, 1 in the first update.
        lr: The learning rate, gamma.
        lambd: Lambda, the decay.
        alpha: The power of the step size.
        t0: The step after which averaging begins.
        weight_decay: lambda.

    Returns:
        The new parameter, and ``ax``, ``eta`` and ``mu``. Each has the dtype and the layout of the tensor it replaces.

    References:
        Polyak & Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging".
    """
    old_average, old_eta, old_mu = or_zeros(state.get("ax"), param), state["eta"], state["mu"]
    assert old_eta is not None
    assert old_mu is not None
    eta, mu = float(old_eta), float(old_mu)
    p, g, average = load(arithmetic_dtype(param), param, grad, old_average)
    g = decayed(g, p, weight_decay)
    p = fma(g, -eta, p * as_scalar(1 - lambd * eta, p))
    average = p if float(as_scalar(mu, p)) == 1 else average + (p - average) * as_scalar(mu, p)

    slowdown = power(1 + lambd * lr * step, abs(alpha))
    eta = lr * slowdown if alpha < 0 else divide(lr, slowdown)
    averaged = step - t0
    mu = 1 / (1 if averaged < 1 else averaged)
    numbers = {"eta": torch.full_like(old_eta, eta), "mu": torch.full_like(old_mu, mu)}
    return store(p, param), {"ax": store(average, old_average), **numbers}


RULE = Rule(
    asgd,
    lambda group: ("step", "eta", "mu", "ax"),
    numbers={"eta": "lr", "mu": 1.0},
    beside_param=True,
)
