"""``convert_state_dict``: state dicts of other libraries' Adam and SGD, in the format of ``torch.optim``."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fusedoptim.checkpoints.checks import format_value
from fusedoptim.checkpoints.convert_common import (
    IMPLEMENTATION,
    MATHEMATICS,
    MOMENTS,
    OF_ANY_GROUP,
    TORCH_ADAM,
    TORCH_SGD,
    Dict,
    adam_group,
    check_keys,
    count,
    entries,
    require,
)
from fusedoptim.checkpoints.keys import meant_keys, not_meant, some_of
from fusedoptim.checkpoints.storage import COMPANIONS, decoded, is_in_8bit, problem_of_scale
from fusedoptim.reference.rules import RULES, Rule
from fusedoptim.settings import STORAGE

_OPTIMI = {
    "decouple_wd", "decouple_lr", "max_lr", "kahan_sum", "triton", "foreach", "gradient_release", "setup", "step",
}  # fmt: skip


def convert_state_dict(state_dict: Mapping[str, Any], *, keep: Iterable[str] = ()) -> Dict:
    """Return a state dict in the format of ``torch.optim``, made from that of another library.

    It knows, by their keys: apex's ``FusedAdam``, DeepSpeed's ``DeepSpeedCPUAdam``, optimi's ``Adam``, ``AdamW`` and
    ``SGD``, ``torch.optim``'s own, which come back as they are, and this package's own in any storage: 8 bits become
    float32, and what parameters have beside them (masters, remainders, compensations) is left out.
    Load the result into the class that has the
    same mathematics: those of apex and DeepSpeed do not tell whether their weight decay was decoupled (it is by
    default), so into ``AdamW`` if it was, and into ``Adam`` if not.

    Args:
        state_dict: What ``state_dict()`` of such an optimizer has returned. It is not changed; tensors that need no
            conversion are the same ones in the result.
        keep: Names of entries of your own in the groups, which go over as they are.

    Returns:
        A new dict, which the classes of this package and of torch load.

    Raises:
        ValueError: A key is not understood, or stands for mathematics that the rules here do not have. The message
            names it.
    """
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError(f"state_dict must have 'state' and 'param_groups', got {format_value(state_dict)}")
    state = dict(state_dict["state"])
    _check_indices(state, {index for group in state_dict["param_groups"] for index in group["params"]})
    groups = [
        _convert_group(dict(group), state, frozenset(keep), f"param_groups[{index}]")
        for index, group in enumerate(state_dict["param_groups"])
    ]
    return {**state_dict, "state": state, "param_groups": groups}


def _check_indices(state: Dict, indices: Collection[Any]) -> None:
    if meant := meant_keys(state, indices):
        require(False, "state {}; {}".format(*not_meant(meant)))
    strays = [index for index in state if index not in indices]
    require(not strays, f"state has entries that belong to no parameter, as no group lists them: {some_of(strays)}")


def _convert_group(group: Dict, state: Dict, keep: frozenset[str], where: str) -> Dict:
    """Convert one group, and the entries of its parameters in ``state``."""
    if "bias_correction" in group:
        return _adam_of_apex_or_deepspeed(group, state, keep, where)
    if "decouple_lr" in group and "beta1" in group:
        return _adam_of_optimi(group, state, keep, where)
    if "decouple_lr" in group and "momentum" in group:
        return _sgd_of_optimi(group, state, keep, where)
    require(
        "betas" in group or "momentum" in group, f"{where} is of no optimizer known here: {format_value(list(group))}"
    )
    is_adam = "betas" in group
    check_keys(group, TORCH_ADAM if is_adam else TORCH_SGD, keep, where)
    known = {"step", "max_exp_avg_sq", *MOMENTS} if is_adam else {"momentum_buffer"}
    for index, entry in entries(group, state):
        state[index] = _of_plain_storage(entry, RULES["adam" if is_adam else "sgd"], f"state[{index!r}]")
        check_keys(state[index], known | {"ema"}, frozenset(), f"state[{index!r}]")
    return {key: value for key, value in group.items() if key not in (*STORAGE, "seed")}


def _of_plain_storage(entry: Dict, rule: Rule, where: str) -> Dict:
    """Our own state without what torch cannot read: 8 bits become float32, and companions of parameters go."""
    names = {key.removesuffix("_scale") for key in entry if key.endswith("_scale")}
    plain = {key: value for key, value in entry.items() if key.removesuffix("_scale") not in names | COMPANIONS}
    if rule is RULES["sgd"]:
        plain.pop("step", None)  # of stochastic rounding
    for name in names:
        require(is_in_8bit(entry, name), f"{where}[{name!r}] must be uint8 beside its scale")
        problem = problem_of_scale(entry[f"{name}_scale"], entry[name])
        require(problem is None, f"{where}['{name}_scale'] {problem}")
        plain[name] = decoded(entry, name, name not in rule.non_negative)
    return {key: plain[key] for key in entry if key in plain}


def _adam_of_apex_or_deepspeed(group: Dict, state: Dict, keep: frozenset[str], where: str) -> Dict:
    """Both keep torch's moments, in float32; apex counts steps once for the group, DeepSpeed for each parameter."""
    check_keys(group, TORCH_ADAM | {"bias_correction", "step"}, keep, where)
    require(group["bias_correction"], f"{where}['bias_correction'] is {group['bias_correction']!r}, {MATHEMATICS}")
    require(
        not group.get("amsgrad"),
        f"{where}['amsgrad'] is True, which DeepSpeedCPUAdam ignores; set it to False to go on as it did",
    )
    shared = group.pop("step", None)
    for index, entry in entries(group, state):
        check_keys(entry, {"step", *MOMENTS}, frozenset(), f"state[{index!r}]")
        require(
            ("step" in entry) != (shared is not None),
            f"state[{index!r}] must have a 'step', or {where} for all, and not both, as with DeepSpeed's FusedAdam, "
            "which does not count the steps of each parameter; set the right one and remove the other",
        )
        state[index] = {"step": count(entry.pop("step", shared), f"state[{index!r}]['step']"), **entry}
    return adam_group(group, tuple(group["betas"]), {"bias_correction"}, where)


def _adam_of_optimi(group: Dict, state: Dict, keep: frozenset[str], where: str) -> Dict:
    """Its moments are already divided by ``1 - beta^t``."""
    check_keys(group, OF_ANY_GROUP | _OPTIMI | {"beta1", "beta2", "eps"}, keep, where)
    _check_optimi(group, where)
    betas = group["beta1"], group["beta2"]
    for index, entry in entries(group, state):
        _check_optimi_entry(entry, MOMENTS, f"state[{index!r}]")
        require(("step" in entry) or ("step" in group), f"{where} and state[{index!r}] have no 'step'")
        step = count(entry.get("step", group.get("step")), f"state[{index!r}]['step'] or {where}['step']")
        moments = zip(("exp_avg", "exp_avg_sq"), betas, strict=True)
        state[index] = {"step": step, **{name: _biased(entry[name], beta, float(step)) for name, beta in moments}}
    converted = adam_group(group, betas, _OPTIMI | {"beta1", "beta2"}, where)
    return {**converted, "decoupled_weight_decay": bool(group["decouple_wd"])}


def _sgd_of_optimi(group: Dict, state: Dict, keep: frozenset[str], where: str) -> Dict:
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
        state[index] = {"momentum_buffer": entry["exp_avg"]} if momentum != 0 else {}
    kept = {key: value for key, value in group.items() if key not in _OPTIMI | {"dampening", "torch_init"}}
    return {**kept, "dampening": momentum if dampened else 0, "nesterov": False, **IMPLEMENTATION}


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
    comp = entry.get("kahan_comp")  # with Triton, one byte stands for none
    require(
        comp is None or (isinstance(comp, Tensor) and comp.dtype == torch.uint8 and comp.numel() == 1),
        f"{where}['kahan_comp'] is {format_value(comp)}: a Kahan sum, {MATHEMATICS}; set it to None to do without",
    )


def _biased(moment: Tensor, beta: float, step: float) -> Tensor:
    """What torch keeps, of a moment that is divided by its bias already; rounded once."""
    return (moment.to(torch.float64) * -math.expm1(step * math.log(beta)) if beta else moment).to(moment.dtype)
