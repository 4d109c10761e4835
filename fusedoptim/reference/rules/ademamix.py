"""AdEMAMix."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fusedoptim.reference.arithmetic import arithmetic_dtype, lerp, load, or_zeros, store
from fusedoptim.reference.ieee import as_scalar, divide, fma, log2, power, sqrt
from fusedoptim.reference.rule import Rule, State


def ademamix(
    param: Tensor,
    grad: Tensor,
    state: State,
    step: float,
    *,
    lr: float,
    betas: tuple[float, float, float],
    alpha: float,
    beta3_warmup: float,
    alpha_warmup: float,
    eps: float,
    weight_decay: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""AdEMAMix, Adam with a second, slow average of the gradients.

    .. math::
        m_1 &\leftarrow \beta_1 m_1 + (1 - \beta_1) g \\
        m_2 &\leftarrow \beta_3(t) m_2 + (1 - \beta_3(t)) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        p &\leftarrow p (1 - \gamma \lambda) - \gamma
            \left( \frac{m_1}{1 - \beta_1^t} + \alpha(t) m_2 \right)
            \Big/ \left( \sqrt{v} \big/ \sqrt{1 - \beta_2^t} + \epsilon \right)

    alpha(t) grows linearly from 0 within ``alpha_warmup`` steps; beta3(t) from beta1 within ``beta3_warmup``, so that
    its half-life grows linearly.

    Args:
        param: p, any shape; bfloat16, float16, float32 or float64.
        grad: g, the shape of ``param``.
        state: ``exp_avg_fast``, m1, unless beta1 is 0; ``exp_avg_slow``, m2; ``exp_avg_sq``, v. The shape of
            ``param``; zeros if missing.
        step: t, 1 in the first update.
        lr: The learning rate, gamma.
        betas: beta1, beta2 and beta3.
        alpha: alpha, at last.
        beta3_warmup: Steps; 0 for none.
        alpha_warmup: Steps; 0 for none.
        eps: epsilon.
        weight_decay: lambda.

    Returns:
        The new parameter and its state. Each has the dtype and the layout of the tensor it replaces; new state those of
        ``param``.

    References:
        Pagliardini, Ablin & Grangier 2025, "The AdEMAMix Optimizer: Better, Faster, Older", algorithm 1.
    """
    beta1, beta2, _ = betas
    names = [name for name in _states({"betas": betas}) if name != "step"]
    old = {name: or_zeros(state.get(name), param) for name in names}
    p, g, *moments = load(arithmetic_dtype(param), param, grad, *old.values())
    *fast, slow, v = moments
    fast = [lerp(m, g, 1 - beta1) for m in fast]
    slow = lerp(slow, g, 1 - _beta3(step, betas, beta3_warmup))
    v = fma(as_scalar(1 - beta2, p) * g, g, v * as_scalar(beta2, p))
    denominator = sqrt(v) / as_scalar(math.sqrt(1 - power(beta2, step)), p) + as_scalar(eps, p)
    of_fast = as_scalar(-(lr / (1 - power(beta1, step))), p) * (fast[0] if fast else g)
    update = fma(slow, -(lr * (alpha * _progress(step, alpha_warmup))), of_fast)
    p = p * as_scalar(1 - lr * weight_decay, p) + update / denominator
    return store(p, param), {name: store(x, old[name]) for name, x in zip(names, [*fast, slow, v], strict=True)}


def _progress(step: float, warmup: float) -> float:
    return step / warmup if step < warmup else 1.0


def _beta3(step: float, betas: tuple[float, float, float], warmup: float) -> float:
    done = _progress(step, warmup)
    if done == 1:
        return betas[2]
    first, last = (divide(-1.0, log2(beta + 1e-8)) for beta in (betas[0], betas[2]))
    return power(0.5, divide(1.0, (1 - done) * first + done * last))


def _states(group: Mapping[str, Any]) -> tuple[str, ...]:
    fast = ("exp_avg_fast",) if group.get("betas", (1,))[0] != 0 else ()
    return ("step", *fast, "exp_avg_slow", "exp_avg_sq")


RULE = Rule(ademamix, _states, non_negative=frozenset({"exp_avg_sq"}))
