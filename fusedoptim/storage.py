"""New tensors of a parameter's state, in the storage that its group asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fusedoptim import native
from fusedoptim.reference.parameters import name_of
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


def begin_with(state: Mapping[str, Any], name: str, value: Any, has_sign: bool) -> None:
    """Fill a new state of zeros, in whatever storage, with a number that it begins with."""
    number = float(value)
    tensor = local_of(state[name])
    if number == 0:
        return
    if tensor.dtype != torch.uint8:
        tensor.fill_(number)
        return
    wide = torch.full(tensor.shape, number, device=tensor.device)
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
