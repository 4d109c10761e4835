"""Converters of optimi's Adam, AdamW and SGD."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fusedoptim.checkpoints.checks import format_value
from fusedoptim.checkpoints.convert_common import (
    IMPLEMENTATION,
    MATHEMATICS,
    MOMENTS,
    OF_ANY_GROUP,
    Dict,
    adam_group,
    check_keys,
    count,
    entries,
    require,
)

_OPTIMI = {
    "decouple_wd", "decouple_lr", "max_lr", "kahan_sum", "triton", "foreach", "gradient_release", "setup", "step",
}  # fmt: skip


def adam_of_optimi(group: Dict, state: Dict, keep: frozenset[str], where: str) -> Dict:
    """Its moments are already divided by ``1 - beta^t``."""
    check_keys(group, OF_ANY_GROUP | _OPTIMI | {"beta1", "beta2", "eps"}, keep, where)
    _check_optimi(group, where)
    betas = group["beta1"], group["beta2"]
    for index, entry in entries(group, state):
        _check_optimi_entry(entry, MOMENTS, f"state[{index!r}]")
        require(("step" in entry) or ("step" in group), f"{where} and state[{index!r}] have no 'step'")
        step = count(entry.get("step", group.get("step")), f"state[{index!r}]['step'] or {where}['step']")
        moments = zip(("exp_avg", "exp_avg_sq"), betas, strict=True)
        biased = {name: _biased(entry[name], beta, float(step)) for name, beta in moments}
        state[index] = {"step": step, **biased, **_kahan_comp(entry, group, f"state[{index!r}]")}
    converted = adam_group(group, betas, _OPTIMI | {"beta1", "beta2"}, where)
    return {**converted, "decoupled_weight_decay": bool(group["decouple_wd"]), **_kahan_sum(group)}


def sgd_of_optimi(group: Dict, state: Dict, keep: frozenset[str], where: str) -> Dict:
    """Its buffer is torch's; ``dampening`` is a flag."""
    check_keys(group, OF_ANY_GROUP | _OPTIMI | {"momentum", "dampening", "torch_init"}, keep, where)
    _check_optimi(group, where)
    momentum = group["momentum"]
    require(
        not (group["decouple_wd"] and group["weight_decay"]),
        f"{where}['decouple_wd'] is True with a weight_decay of {group['weight_decay']}, {MATHEMATICS} for SGD",
    )
    dampened = bool(group["dampening"]) and momentum != 0
    for index in group["params"]:
        require(
            not dampened or group["torch_init"] or index in state,
            f"{where}['dampening'] is True with torch_init=False, and parameter {index!r} has no state yet: it would "
            f"start from a dampened gradient, {MATHEMATICS}",
        )
    for index, entry in entries(group, state):
        _check_optimi_entry(entry, {"exp_avg"}, f"state[{index!r}]")
        buffer = {"momentum_buffer": entry["exp_avg"]} if momentum != 0 else {}
        state[index] = {**buffer, **_kahan_comp(entry, group, f"state[{index!r}]")}
    kept = {key: value for key, value in group.items() if key not in _OPTIMI | {"dampening", "torch_init"}}
    converted = {**kept, "dampening": momentum if dampened else 0, "nesterov": False, **IMPLEMENTATION}
    return {**converted, **_kahan_sum(group)}


def _check_optimi(group: Dict, where: str) -> None:
    require("decouple_wd" in group, f"{where} has no 'decouple_wd': it is not of optimi's Adam, AdamW or SGD")
    require(
        not (group["decouple_lr"] and group["weight_decay"]),
        f"{where}['decouple_lr'] is True with a weight_decay of {group['weight_decay']}, {MATHEMATICS}",
    )


def _check_optimi_entry(entry: Dict, moments: set[str], where: str) -> None:
    check_keys(entry, {"step", "kahan_comp", "group", *moments}, frozenset(), where)
    for name in moments:
        require(name in entry, f"{where} has no {name!r}")


def _kahan_comp(entry: Dict, group: Dict, where: str) -> Dict:
    """What the parameter lacks, as ours keeps it; with Triton, one byte stands for none."""
    comp = entry.get("kahan_comp")
    if comp is None or (isinstance(comp, Tensor) and comp.dtype == torch.uint8 and comp.numel() == 1):
        return {}
    is_known = isinstance(comp, Tensor) and comp.dtype in (torch.bfloat16, torch.float16) and group["kahan_sum"]
    require(
        is_known,
        f"{where}['kahan_comp'] must be bfloat16 or float16, in a group with kahan_sum=True, got {format_value(comp)}",
    )
    return {"kahan_comp": comp}


def _kahan_sum(group: Dict) -> Dict:
    return {"kahan_sum": True} if group["kahan_sum"] else {}


def _biased(moment: Tensor, beta: float, step: float) -> Tensor:
    """What torch keeps, of a moment that is divided by its bias already; rounded once, to float32 or wider."""
    wide = torch.promote_types(moment.dtype, torch.float32)
    return (moment.to(torch.float64) * -math.expm1(step * math.log(beta)) if beta else moment).to(wide)
