"""What schedule-free rules share."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fusedoptim.reference.arithmetic import lerp
from fusedoptim.reference.ieee import divide, fma, power

_OPTIONS = ("lr", "warmup_steps", "r", "weight_lr_power", "k", "lr_max", "weight_sum")


def _signed_power(base: float, exponent: float) -> float:
    return divide(1.0, power(base, -exponent)) if exponent < 0 else power(base, exponent)


def schedule(
    lr: float, warmup_steps: float, r: float, weight_lr_power: float, k: float, lr_max: float, weight_sum: float
) -> dict[str, float]:
    r"""The learning rate of a step, and the share of its iterate in the average of all.

    .. math::
        \gamma_t &= \gamma \min(1, (k + 1) / \text{warmup}), \qquad
            w_t = (k + 1)^r \left( \max_{s \le t} \gamma_s \right)^{\text{weight\_lr\_power}} \\
        c_t &= w_t \Big/ \sum_{s \le t} w_s

    Args:
        lr: The learning rate after the warmup.
        warmup_steps: Steps within which it grows.
        r: The power of the step number in the weight of an iterate.
        weight_lr_power: The power of the learning rate in it.
        k: Steps so far.
        lr_max: The largest learning rate so far.
        weight_sum: Of the weights so far.

    Returns:
        lr, gamma_t; share, c_t; and lr_max and weight_sum, this step included.
    """
    lr = lr * ((k + 1) / warmup_steps if k < warmup_steps else 1)
    lr_max = lr_max if lr < lr_max else lr
    weight = _signed_power(k + 1, r) * _signed_power(lr_max, weight_lr_power)
    weight_sum = weight_sum + weight
    return {
        "lr": lr,
        "lr_max": lr_max,
        "weight_sum": weight_sum,
        "share": 0.0 if weight_sum == 0 else divide(weight, weight_sum),
    }


def advance_group(options: Mapping[str, Any]) -> dict[str, float]:
    """What a step writes to its group."""
    now = schedule(**{name: options[name] for name in _OPTIONS})
    numbers = {"lr_max": now["lr_max"], "weight_sum": now["weight_sum"], "scheduled_lr": now["lr"]}
    return {"k": int(options["k"]) + 1, **numbers}


def move(y: Tensor, z: Tensor, direction: Tensor, now: Mapping[str, float], beta: float) -> tuple[Tensor, Tensor]:
    r"""Move y, where gradients are taken, and z, the iterate of the base method.

    .. math::
        y &\leftarrow y + c (z - y) + \gamma (\beta (1 - c) - 1) d \\
        z &\leftarrow z - \gamma d
    """
    y = fma(direction, now["lr"] * (beta * (1 - now["share"]) - 1), lerp(y, z, now["share"]))
    return y, fma(direction, -now["lr"], z)
