"""DTensors (torch.distributed.tensor): sharded over several processes, each of which holds a plain local tensor.

As ``csrc/python/dtensor.cpp`` for the kernels.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any

from torch import Tensor


def is_dtensor(tensor: Any) -> bool:
    """Whether it is a DTensor, exactly. Imports nothing: where there is one, its module is loaded."""
    return _is_of(tensor, "torch.distributed.tensor", "DTensor")


def has_dtensors(lists: Iterable[Iterable[Any]]) -> bool:
    """Whether one of them is a DTensor, exactly."""
    dtensor = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return dtensor is not None and any(dtensor in map(type, tensors) for tensors in lists)


def local_of(tensor: Tensor) -> Tensor:
    """The local tensor of a DTensor; any other tensor as it is. Waits for a pending collective."""
    if not is_dtensor(tensor):
        return tensor
    local: Any = tensor._local_tensor  # type: ignore[attr-defined]
    if _is_of(local, "torch.distributed._functional_collectives", "AsyncCollectiveTensor"):
        local.trigger_wait()
        local = local.elem
    assert isinstance(local, Tensor)
    return local


def refusal_of_sharding(param: Tensor, what: str, other: Tensor) -> str | None:
    """Why the sharding of a gradient or state tensor does not match its parameter's, or None."""
    if not is_dtensor(param):
        return f"its {what} is a tensor subclass" if is_dtensor(other) else None
    if any(placement.is_partial() for placement in param._spec.placements):  # type: ignore[attr-defined]
        return "it is a DTensor with a Partial placement"  # whose elements are parts of sums
    if not is_dtensor(other):
        return f"its {what} is not a DTensor of a plain tensor, as it is"
    return None if _same_sharding(other, param) else f"its {what} is a DTensor on another mesh or with other placements"


def first_element(param: Tensor) -> int | None:
    """The place of this process's first element in the whole tensor; None if it does not hold whole rows of it."""
    if not is_dtensor(param):
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    spec: Any = param._spec  # type: ignore[attr-defined]
    _, offset = compute_local_shape_and_global_offset(spec.shape, spec.mesh, spec.placements)
    rows_are_whole = tuple(local_of(param).shape[1:]) == tuple(spec.shape[1:])
    row = math.prod(spec.shape[1:])
    return (offset[0] * row if offset else 0) if rows_are_whole else None


def _same_sharding(a: Any, b: Any) -> bool:
    """Whether two DTensors have the same sharding, so that corresponding elements are local in the same place."""
    one, other = a._spec, b._spec
    return one is other or (
        one.placements == other.placements
        and one.mesh == other.mesh
        and getattr(one, "shard_order", None) == getattr(other, "shard_order", None)
    )


def _is_of(tensor: object, module: str, name: str) -> bool:
    return type(tensor) is getattr(sys.modules.get(module), name, None)
