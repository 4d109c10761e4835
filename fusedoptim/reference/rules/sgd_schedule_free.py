"""Schedule-free SGD."""

from torch import Tensor

from fusedoptim.reference.arithmetic import arithmetic_dtype, decayed, load, or_zeros, store
from fusedoptim.reference.rule import PARAM, Rule, State
from fusedoptim.reference.schedule_free import advance_group, move, schedule


def sgd_schedule_free(
    param: Tensor,
    grad: Tensor,
    state: State,
    step: float,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    warmup_steps: float,
    r: float,
    weight_lr_power: float,
    k: float,
    lr_max: float,
    weight_sum: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Schedule-free SGD.

    .. math::
        g &\leftarrow g + \lambda y \\
        y &\leftarrow y + c (z - y) - \gamma (1 - \beta (1 - c)) g \\
        z &\leftarrow z - \gamma g

    ``fusedoptim.reference.schedule_free`` has the learning rate gamma and the share c of a step.

    Args:
        param: y, any shape; bfloat16, float16, float32 or float64.
        grad: g, the shape of ``param``.
        state: ``z``, the shape of ``param``, which it begins as.
        step: Not used.
        lr: The learning rate after the warmup.
        momentum: beta.
        weight_decay: lambda.
        warmup_steps: Steps within which the learning rate grows, linearly.
        r: The power of the step number in the weight of an iterate.
        weight_lr_power: The power of the learning rate in it.
        k: Steps so far; this, and the next two, the step writes to the group.
        lr_max: The largest learning rate so far, -1 before the first step.
        weight_sum: Of the weights so far.

    Returns:
        The new parameter, and ``z``. Each has the dtype and the layout of the tensor it replaces.

    References:
        Defazio et al. 2024, "The Road Less Scheduled".
    """
    now = schedule(lr, warmup_steps, r, weight_lr_power, k, lr_max, weight_sum)
    old_z = or_zeros(state.get("z"), param)
    y, g, z = load(arithmetic_dtype(param), param, grad, old_z)
    y, z = move(y, z, decayed(g, y, weight_decay), now, momentum)
    return store(y, param), {"z": store(z, old_z)}


RULE = Rule(
    sgd_schedule_free,
    lambda group: ("z",),
    initial={"z": PARAM},
    advance_group=advance_group,
    exact=frozenset({"z"}),
)
