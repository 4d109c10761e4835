"""FSDP1 and ZeroRedundancyOptimizer, which shard a model over processes as plain tensors that do not show it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any

import torch

_FSDP = "torch.distributed.fsdp"
_ZERO = "torch.distributed.optim.zero_redundancy_optimizer"
_HINTS = {
    "max_grad_norm": "clip before the step, by {clip}",
    "skip_nonfinite": "take the step only if the norm that {clip} returns is finite",
}


def refuse_settings(groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise if a setting needs the norm of all gradients, and this process has only some of them.

    Each process would clip by the norm of its own part, and go on by itself after a step that was left out.

    Raises:
        ValueError: So it is: the parameters are FSDP1's, or a ZeroRedundancyOptimizer is what calls.
    """
    if _FSDP not in sys.modules and _ZERO not in sys.modules:
        return
    for index, group in enumerate(groups):
        for name, hint in _HINTS.items():
            value = group.get(name)
            if value is not None and value is not False:
                limit = value if name == "max_grad_norm" else ...
                _refuse(f"{name}={value!r} in parameter group {index}", hint, [group], limit)


def refuse_fsdp1(groups: Iterable[Mapping[str, Any]], max_norm: float) -> None:
    """Raise if a norm is asked for of parameters that are FSDP1's."""
    if _are_fsdp1s(groups):
        _refuse(f"clip_grad_norm_({max_norm!r})", _HINTS["max_grad_norm"], groups, max_norm)


def _refuse(what: str, hint: str, groups: Iterable[Mapping[str, Any]], max_norm: Any) -> None:
    limit = "..." if max_norm is ... else repr(max_norm)
    if _are_fsdp1s(groups):
        engine, clip = "with FullyShardedDataParallel", f"model.clip_grad_norm_({limit})"
    elif _ZERO in sys.modules and _is_called_from(_ZERO):
        engine, clip = "within ZeroRedundancyOptimizer", f"fusedoptim.clip_grad_norm_(model.parameters(), {limit})"
    else:
        return
    raise ValueError(
        f"{what}: {engine} each process has a part of the parameters, and would know the norm of that alone; "
        f"{hint.format(clip=clip)}"
    )


def _are_fsdp1s(groups: Iterable[Mapping[str, Any]]) -> bool:
    return (
        _FSDP in sys.modules
        and any(getattr(param, "_fsdp_flattened", False) for group in groups for param in list(group["params"])[:1])
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def _is_called_from(module: str) -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == module:
            return True
        frame = frame.f_back
    return False
