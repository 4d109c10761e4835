"""State of any storage in a state dict: checked before it is loaded, and kept or converted, where torch would cast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fusedoptim import native
from fusedoptim.reference.rules import RULES
from fusedoptim.reference.storage import (
    COMPANION_NAMES,
    Storage,
    companion_of,
    dtype_asked,
    dtype_of_new,
    scale_shape,
)
from fusedoptim.storage import zeros_for
from fusedoptim.torch_internals.dtensor import is_dtensor, local_of

COMPANIONS = frozenset(COMPANION_NAMES.values())
_HALVES = (torch.bfloat16, torch.float16)


def is_in_8bit(entry: Mapping[str, Any], name: str) -> bool:
    """Whether a state is in 8 bits."""
    value = entry.get(name)
    return isinstance(value, Tensor) and value.dtype == torch.uint8 and f"{name}_scale" in entry


def problem_of_scale(scale: Any, codes: Tensor) -> str | None:
    """What is wrong with the scales of a state in 8 bits, or None."""
    shape = scale_shape(codes.shape)
    if not isinstance(scale, Tensor) or scale.dtype != torch.float32 or tuple(scale.shape) != shape:
        found = f"{tuple(scale.shape)}, {scale.dtype}" if isinstance(scale, Tensor) else repr(scale)
        return f"must be float32 of shape {shape}, one for each block of 256, got {found}"
    if scale.layout != torch.strided or (scale.is_meta and not codes.is_meta):
        return f"must be numbers in memory, got layout {scale.layout} on {scale.device}"
    local = local_of(scale)
    if local.is_meta or is_dtensor(local):
        return None
    exponents = local.detach().contiguous().view(torch.int32)
    is_power = (exponents & 0x7FFFFF == 0) & (exponents >= 0) & (exponents < 0x7F800000)
    return None if bool((is_power | local.isnan()).all()) else "must hold powers of two, and does not"


def problem_of_companion(value: Tensor, param: Tensor, name: str) -> str | None:
    """What is wrong with a parameter's companion, or None."""
    if value.shape != param.shape:
        return f"has shape {tuple(value.shape)}, which is not that of the parameter"
    allowed = (torch.float32, torch.int16) if name == "master_param" else _HALVES
    return None if value.dtype in allowed else f"has dtype {value.dtype}, which is none of {allowed}"


def restore(optimizer: Any, state_dict: Mapping[str, Any]) -> None:
    """After torch has loaded a state dict, put what it has cast to the dtype of the parameter as it should be stored.

    That is as the group asks for; else as the file has it, where torch's cast would lose digits.
    """
    rule = RULES[optimizer._rule]
    for group, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        names = rule.tensors(group)
        for param, key in zip(group["params"], saved["params"], strict=True):
            given, entry = state_dict["state"].get(key), optimizer.state.get(param)
            if not given or not entry:
                continue
            for name in COMPANIONS & given.keys():
                _restore_companion(entry, given[name], name, group, param)
            for name in rule.numbers.keys() & given.keys():
                if isinstance(given[name], Tensor):
                    entry[name] = given[name].detach().clone()
            for name in names:
                value = given.get(name)
                if isinstance(value, Tensor) and not value.is_sparse:
                    _restore_state(entry, given, name, group, param, name not in rule.non_negative)


def _restore_companion(entry: Any, value: Tensor, name: str, group: Any, param: Tensor) -> None:
    """Keep a companion as it is, or, where the group asks for another one, make that of it, or let it begin afresh."""
    value = value.to(param.device)
    local, own = local_of(param), local_of(value)
    kind = companion_of(group, local)
    wanted = {"master": torch.float32, "remainder": torch.int16, "compensation": param.dtype}.get(kind or "")
    if wanted is None or COMPANION_NAMES[kind or ""] != name or value.dtype == wanted:
        entry[name] = value
    elif name == "master_param" and param.dtype == torch.bfloat16 and own.shape == local.shape:
        before = Storage("remainder" if value.dtype == torch.int16 else "master").read_param(local.detach(), own)
        made = native.zeros_like(param, wanted)
        Storage(kind).write_param(before, torch.empty_like(local), local_of(made), 0.0)
        entry[name] = made
    else:
        entry.pop(name, None)


def _restore_state(entry: Any, given: Any, name: str, group: Any, param: Tensor, has_sign: bool) -> None:
    value, dtype = given[name], _dtype_wanted(name, given, group, param)
    is_coded = is_in_8bit(given, name)
    if value.dtype == dtype and dtype == param.dtype:
        return
    entry.pop(f"{name}_scale", None)
    if value.dtype == dtype:
        entry[name] = value.to(param.device)
        if is_coded:
            entry[f"{name}_scale"] = given[f"{name}_scale"].to(param.device).contiguous()
        return
    wide = decoded(given, name, has_sign) if is_coded else value
    if dtype != torch.uint8:
        entry[name] = wide.to(param.device, dtype)
        return
    made = zeros_for(name, dtype, param)
    local, scale = local_of(made[name]), local_of(made[f"{name}_scale"])
    Storage(signs={name: has_sign}).write_state(name, local_of(wide).to(param.device).float(), local, scale, None)
    entry.update(made)


def _dtype_wanted(name: str, given: Any, group: Any, param: Tensor) -> torch.dtype:
    if dtype_asked(name, group) is not None or (group.get("master_weights") and param.dtype in _HALVES):
        return dtype_of_new(name, group, param)
    dtype: torch.dtype = given[name].dtype
    if is_in_8bit(given, name) or (param.dtype in _HALVES and dtype == torch.float32):
        return dtype
    return param.dtype


def decoded(entry: Mapping[str, Any], name: str, has_sign: bool) -> Tensor:
    """The numbers of a state in 8 bits, in float32."""
    codes, scale = entry[name], entry[f"{name}_scale"]
    wide = Storage(signs={name: has_sign}).read_state(name, local_of(codes), local_of(scale))
    if not is_dtensor(codes):
        return wide
    from torch.distributed.tensor import DTensor

    whole: Tensor = DTensor.from_local(
        wide, codes.device_mesh, codes.placements, run_check=False, shape=codes.shape, stride=codes.stride()
    )
    return whole
