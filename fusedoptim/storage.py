"""New tensors of a parameter's state, in the storage that its group asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fusedoptim import native
from fusedoptim.reference.parameters import name_of
from fusedoptim.reference.rule import PARAM, Rule
from fusedoptim.reference.storage import Storage, companion_of, dtype_of_new, scale_shape
from fusedoptim.settings import STORAGE
from fusedoptim.torch_internals.dtensor import is_dtensor, local_of

_COMPANIONS = {"master": torch.float32, "remainder": torch.int16, "compensation": None}


def new_tensors(name: str, group: Mapping[str, Any], param: Tensor, is_rules: bool) -> dict[str, Tensor]:
    """Zeros for one entry of a parameter's state, and its scales if it is in 8 bits.

    Args:
        name: Of the entry.
        group: Of the parameter.
        param: The parameter.
        is_rules: Whether the rule keeps it; else it is the average, or the parameter's companion. A master that is
            zero follows the parameter, as after any change of that.
    """
    if not is_rules:
        kind = companion_of(group, local_of(param)) if name != "ema" else None
        return {name: native.zeros_like(param, _COMPANIONS[kind] if kind else None)}
    return zeros_for(name, dtype_of_new(name, group, param), param)


def zeros_for(name: str, dtype: torch.dtype, param: Tensor) -> dict[str, Tensor]:
    """Zeros for a state in a dtype, and its scales if that is uint8, for 8 bits."""
    made = {name: native.zeros_like(param, dtype, is_row_major=dtype == torch.uint8)}
    if dtype == torch.uint8:
        made[f"{name}_scale"] = _scales_of(param)
    return made


def new_state(rule: Rule, param: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a parameter that has none."""
    on_device = group.get("fused") or group.get("capturable") or rule.beside_param
    wide = torch.get_default_dtype() == torch.float64 and not group.get("fused")
    dtype, device = torch.float64 if wide else torch.float32, param.device if on_device else "cpu"
    own_names = rule.own_state(group)
    state: dict[str, Any] = {}
    for name in rule.state_names(group, param):
        if name in rule.scalars:
            value = rule.numbers.get(name, 0.0)
            value = float(group[value] if isinstance(value, str) else value)
            state[name] = torch.full((), value, dtype=dtype, device=device)
        else:
            state.update(new_tensors(name, group, param, name in own_names))
            if name in rule.initial:
                option = rule.initial[name]
                _begin_with(state, name, param if option == PARAM else group[option], name not in rule.non_negative)
    return state


def _begin_with(state: Mapping[str, Any], name: str, value: Any, has_sign: bool) -> None:
    """Fill a new state of zeros, in whatever storage, with a number, or what a tensor of its shape holds."""
    tensor, first = (
        local_of(state[name]),
        local_of(value) if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64),
    )
    if tensor.shape != first.shape:
        first = first.to(tensor.device).reshape(()).expand(tensor.shape)
    if tensor.dtype != torch.uint8:
        with torch.no_grad():
            tensor.copy_(first)
        return
    wide = first.detach().to(tensor.device, torch.float32).contiguous()
    Storage(signs={name: has_sign}).write_state(name, wide, tensor, local_of(state[f"{name}_scale"]), None)


def _scales_of(param: Any) -> Tensor:
    scales = torch.zeros(scale_shape(local_of(param).shape), device=param.device)
    if not is_dtensor(param):
        return scales
    from torch.distributed.tensor import DTensor

    shape = torch.Size(scale_shape(param.shape))
    return DTensor.from_local(
        scales, param.device_mesh, param.placements, run_check=False, shape=shape, stride=(shape[1], 1)
    )


def refuse_torch(groups: Sequence[Mapping[str, Any]], lists: Sequence[Iterable[Tensor]] | None) -> None:
    """Raise if torch's implementation would step parameters of a group that asks for a storage of ours."""
    for index, group in enumerate(groups):
        params = group["params"] if lists is None else lists[index]
        asked = [name for name in STORAGE if group.get(name)]
        left = next((param for param in params if asked and param.grad is not None), None)
        if left is not None:
            position = next((i for i, param in enumerate(group["params"]) if param is left), 0)
            raise RuntimeError(
                f"{asked[0]}={group[asked[0]]!r} of parameter group {index} needs this package's step, but only torch "
                f"takes {name_of(left, dict(group), index, position)}: fusedoptim.explain_step(optimizer) says why; "
                "change that, put the parameter into a group without the setting, or leave the setting out"
            )
