"""Schedule-free AdamW."""

import math

from torch import Tensor

from fusedoptim.reference.arithmetic import arithmetic_dtype, decayed, load, or_zeros, store
from fusedoptim.reference.ieee import as_scalar, fma, power, sqrt
from fusedoptim.reference.rule import PARAM, Rule, State
from fusedoptim.reference.schedule_free import advance_group, move, schedule


def adamw_schedule_free(
    param: Tensor,
    grad: Tensor,
    state: State,
    step: float,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    warmup_steps: float,
    r: float,
    weight_lr_power: float,
    k: float,
    lr_max: float,
    weight_sum: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Schedule-free AdamW.

    .. math::
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        d &= g \Big/ \left( \sqrt{v} \big/ \sqrt{1 - \beta_2^t} + \epsilon \right) + \lambda y \\
        y &\leftarrow y + c (z - y) - \gamma (1 - \beta_1 (1 - c)) d \\
        z &\leftarrow z - \gamma d

    ``fusedoptim.reference.schedule_free`` has the learning rate gamma and the share c of a step.

    Args:
        param: y, any shape; bfloat16, float16, float32 or float64.
        grad: g, the shape of ``param``.
        state: ``z``, which begins as ``param``; ``exp_avg_sq``, v, zeros if missing. The shape of ``param``.
        step: t, 1 in the first update.
        lr: The learning rate after the warmup.
        betas: beta1 and beta2.
        eps: epsilon.
        weight_decay: lambda.
        warmup_steps: Steps within which the learning rate grows, linearly.
        r: The power of the step number in the weight of an iterate.
        weight_lr_power: The power of the learning rate in it.
        k: Steps so far; this, and the next two, the step writes to the group.
        lr_max: The largest learning rate so far, -1 before the first step.
        weight_sum: Of the weights so far.

    Returns:
        The new parameter, ``z`` and ``exp_avg_sq``. Each has the dtype and the layout of the tensor it replaces.

    References:
        Defazio et al. 2024, "The Road Less Scheduled", algorithm 1.
    """
    beta1, beta2 = betas
    now = schedule(lr, warmup_steps, r, weight_lr_power, k, lr_max, weight_sum)
    old_z, old_sq = (or_zeros(state.get(name), param) for name in ("z", "exp_avg_sq"))
    y, g, z, v = load(arithmetic_dtype(param), param, grad, old_z, old_sq)
    v = fma(as_scalar(1 - beta2, y) * g, g, v * as_scalar(beta2, y))
    direction = g / (sqrt(v) / as_scalar(math.sqrt(1 - power(beta2, step)), y) + as_scalar(eps, y))
    y, z = move(y, z, decayed(direction, y, weight_decay), now, beta1)
    return store(y, param), {"z": store(z, old_z), "exp_avg_sq": store(v, old_sq)}


RULE = Rule(
    adamw_schedule_free,
    lambda group: ("z", "exp_avg_sq"),
    non_negative=frozenset({"exp_avg_sq"}),
    initial={"z": PARAM},
    advance_group=advance_group,
    exact=frozenset({"z"}),
)
