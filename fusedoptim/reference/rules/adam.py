"""Adam, AdamW and AMSGrad."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fusedoptim.reference.arithmetic import arithmetic_dtype, lerp, load, maximum, or_zeros, store
from fusedoptim.reference.ieee import as_scalar, fma, power, sqrt
from fusedoptim.reference.rule import Rule, State


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
    old_state = {name: or_zeros(state.get(name), param) for name in names}
    p, g, m, v, *v_max = load(arithmetic_dtype(param), param, grad, *old_state.values())

    if weight_decay != 0 and decoupled_weight_decay:
        p = p * as_scalar(1 - lr * weight_decay, p)
    elif weight_decay != 0:
        g = fma(p, weight_decay, g)
    m = lerp(m, g, 1 - beta1)
    v = fma(as_scalar(1 - beta2, p) * g, g, v * as_scalar(beta2, p))
    new_moments = [m, v]
    if amsgrad:
        v = maximum(v_max[0], v)
        new_moments.append(v)
    denominator = sqrt(v) / as_scalar(math.sqrt(bias_correction2), p) + as_scalar(eps, p)
    p = p + (as_scalar(-step_size, p) * m) / denominator

    new_state = {name: store(x, old_state[name]) for name, x in zip(names, new_moments, strict=True)}
    return store(p, param), new_state


def _states(group: Mapping[str, Any]) -> tuple[str, ...]:
    return ("step", "exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))


RULE = Rule(
    adam,
    _states,
    non_negative=frozenset({"exp_avg_sq", "max_exp_avg_sq"}),
    filled_in=frozenset({"amsgrad", "decoupled_weight_decay"}),
)
