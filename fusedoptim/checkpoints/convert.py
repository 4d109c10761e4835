"""``convert_state_dict``: state dicts of other libraries' Adam and SGD, in the format of ``torch.optim``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fusedoptim.checkpoints.checks import format_value
from fusedoptim.checkpoints.convert_common import (
    MATHEMATICS,
    MOMENTS,
    TORCH_ADAM,
    TORCH_SGD,
    Dict,
    adam_group,
    check_keys,
    count,
    entries,
    require,
)
from fusedoptim.checkpoints.convert_optimi import adam_of_optimi, sgd_of_optimi
from fusedoptim.checkpoints.convert_quantized import (
    adam_of_bitsandbytes,
    adam_of_flashoptim,
    adam_of_torchao,
    is_of_bitsandbytes,
    is_of_torchao,
)
from fusedoptim.checkpoints.keys import meant_keys, not_meant, some_of
from fusedoptim.checkpoints.storage import COMPANIONS, decoded, is_in_8bit, problem_of_scale
from fusedoptim.reference.rule import Rule
from fusedoptim.reference.rules import RULES
from fusedoptim.settings import STORAGE


def convert_state_dict(state_dict: Mapping[str, Any], *, keep: Iterable[str] = ()) -> Dict:
    """Return a state dict in the format of ``torch.optim``, made from that of another library.

    It knows, by their keys: ``FusedAdam`` of apex and TransformerEngine, DeepSpeed's ``DeepSpeedCPUAdam``, optimi's
    ``Adam``, ``AdamW`` and ``SGD``, ``Adam`` and ``AdamW`` of bitsandbytes, torchao and flashoptim in any number of
    bits, ``torch.optim``'s own, which come back as they are, and this package's own in any storage. State in 8 bits
    becomes float32. What parameters have beside them goes over with its setting in the groups (``master_weights`` from
    TransformerEngine, ``kahan_sum`` from optimi); of this package's own it is left out, so that torch loads the rest.
    Load the result into the class that has the same mathematics: apex, TransformerEngine, DeepSpeed, torchao and
    flashoptim do not tell whether their weight decay was decoupled, so into ``AdamW`` if it was, and into ``Adam`` if
    not.

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
        return _fused_adam(group, state, keep, where)
    if "decouple_lr" in group and "beta1" in group:
        return adam_of_optimi(group, state, keep, where)
    if "decouple_lr" in group and "momentum" in group:
        return sgd_of_optimi(group, state, keep, where)
    if "master_bytewidth" in group:
        return adam_of_flashoptim(group, state, keep, where)
    require(
        "betas" in group or "momentum" in group, f"{where} is of no optimizer known here: {format_value(list(group))}"
    )
    is_adam = "betas" in group
    if is_adam and is_of_bitsandbytes(group, state):
        return adam_of_bitsandbytes(group, state, keep, where)
    if is_adam and is_of_torchao(group, state):
        return adam_of_torchao(group, state, keep, where)
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


def _fused_adam(group: Dict, state: Dict, keep: frozenset[str], where: str) -> Dict:
    """Of apex, TransformerEngine and DeepSpeed: torch's moments; only DeepSpeed counts steps for each parameter."""
    check_keys(group, TORCH_ADAM | {"bias_correction", "step"}, keep, where)
    require(group["bias_correction"], f"{where}['bias_correction'] is {group['bias_correction']!r}, {MATHEMATICS}")
    require(
        not group.get("amsgrad"),
        f"{where}['amsgrad'] is True, which DeepSpeedCPUAdam ignores; set it to False to go on as it did",
    )
    shared = group.pop("step", None)
    for index, entry in entries(group, state):
        check_keys(entry, {"step", "master_param", *MOMENTS}, frozenset(), f"state[{index!r}]")
        require(
            ("step" in entry) != (shared is not None),
            f"state[{index!r}] must have a 'step', or {where} for all, and not both, as with DeepSpeed's FusedAdam, "
            "which does not count the steps of each parameter; set the right one and remove the other",
        )
        state[index] = {"step": count(entry.pop("step", shared), f"state[{index!r}]['step']"), **entry}
    converted = adam_group(group, tuple(group["betas"]), {"bias_correction"}, where)
    return {**converted, **_master_weights(group, state)}


def _master_weights(group: Dict, state: Dict) -> Dict:
    """The setting for what TransformerEngine keeps; its int16 is to be added to the bits of the parameter, as ours."""
    masters = {index: entry["master_param"] for index, entry in entries(group, state) if "master_param" in entry}
    for index, master in masters.items():
        require(
            isinstance(master, Tensor) and master.dtype in (torch.float32, torch.int16),
            f"state[{index!r}]['master_param'] must be a tensor of float32 or int16, got {format_value(master)}",
        )
    is_split = any(master.dtype == torch.int16 for master in masters.values())
    return {"master_weights": "remainder" if is_split else True} if masters else {}
