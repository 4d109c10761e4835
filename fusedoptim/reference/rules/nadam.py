"""NAdam."""

import math

import torch
from torch import Tensor

from fusedoptim.reference.arithmetic import arithmetic_dtype, decayed, lerp, load, or_zeros, store
from fusedoptim.reference.ieee import as_scalar, divide, fma, power, sqrt
from fusedoptim.reference.rule import Rule, State


def nadam(
    param: Tensor,
    grad: Tensor,
    state: State,
    step: float,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    momentum_decay: float,
    decoupled_weight_decay: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""NAdam, Adam with Nesterov's momentum.

    .. math::
        p &\leftarrow p (1 - \gamma \lambda) \text{ if decoupled, else } g \leftarrow g + \lambda p \\
        \mu_t &= \beta_1 (1 - 0.96^{t \psi} / 2), \qquad \Pi \leftarrow \Pi \mu_t \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        p &\leftarrow p - \gamma \left( \frac{1 - \mu_t}{1 - \Pi} g + \frac{\mu_{t+1}}{1 - \Pi \mu_{t+1}} m \right)
            \Big/ \left( \sqrt{v} \big/ \sqrt{1 - \beta_2^t} + \epsilon \right)

    Args:
        param: p, any shape; bfloat16, float16, float32 or float64.
        grad: g, the shape of ``param``.
        state: ``exp_avg``, m; ``exp_avg_sq``, v: the shape of ``param``; zeros if missing. ``mu_product``, the product
            of all momenta so far: one number.
        step: t, 1 in the first update.
        lr: The learning rate, gamma.
        betas: beta1 and beta2.
        eps: epsilon.
        weight_decay: lambda.
        momentum_decay: psi.
        decoupled_weight_decay: Shrink the parameter itself; otherwise it enters the gradient.

    Returns:
        The new parameter, and ``exp_avg``, ``exp_avg_sq`` and ``mu_product``. Each has the dtype and the layout of the
        tensor it replaces; new state those of ``param``.

    References:
        Dozat 2016, "Incorporating Nesterov Momentum into Adam".
    """
    beta1, beta2 = betas
    old_avg, old_sq = (or_zeros(state.get(name), param) for name in ("exp_avg", "exp_avg_sq"))
    p, g, m, v = load(arithmetic_dtype(param), param, grad, old_avg, old_sq)
    mu, next_mu = (beta1 * (1 - 0.5 * power(0.96, t * momentum_decay)) for t in (step, step + 1))
    old_product = state["mu_product"]
    assert old_product is not None
    product = torch.full_like(old_product, float(old_product) * mu)  # rounded as it is stored
    mu_product = float(product)

    if decoupled_weight_decay:
        p = p * as_scalar(1 - lr * weight_decay, p)
    else:
        g = decayed(g, p, weight_decay)
    m = lerp(m, g, 1 - beta1)
    v = fma(as_scalar(1 - beta2, p) * g, g, v * as_scalar(beta2, p))
    denominator = sqrt(v) / as_scalar(math.sqrt(1 - power(beta2, step)), p) + as_scalar(eps, p)
    of_grad = as_scalar(-divide(lr * (1 - mu), 1 - mu_product), p) * g
    p = p + fma(m, -divide(lr * next_mu, 1 - mu_product * next_mu), of_grad) / denominator
    return store(p, param), {"exp_avg": store(m, old_avg), "exp_avg_sq": store(v, old_sq), "mu_product": product}


RULE = Rule(
    nadam,
    lambda group: ("step", "mu_product", "exp_avg", "exp_avg_sq"),
    non_negative=frozenset({"exp_avg_sq"}),
    numbers={"mu_product": 1.0},
    filled_in=frozenset({"decoupled_weight_decay"}),
)
