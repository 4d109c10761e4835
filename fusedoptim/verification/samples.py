"""Samples for verification: some elements of a parameter, its gradient and its state, copied to the CPU."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusedoptim.torch_internals.dtensor import local_of

_ENDS = 64  # elements at each end of a parameter, where loops have their special cases


@dataclass
class Sample:
    """Copies of some elements, from before a step."""

    name: str
    param: Tensor
    index: Tensor
    """Which elements: indices into the flattened parameter, as far as it lies in this process."""
    group: dict[str, Any]
    """The options of the parameter's group, with ``copy`` as its only parameter."""
    group_index: int
    copy: Tensor
    """Elements of the parameter, with those of the gradient as ``grad``."""
    state: dict[str, Any]
    number: int = 0
    """The parameter's, among those of all groups, of which random bits depend."""


_LARGEST_WHOLE = 1 << 20
_SCALES = "_scale"


def must_be_whole(group: dict[str, Any], state: dict[str, Any]) -> bool:
    """Whether elements cannot be stepped without the others: random bits depend on their place, and scales on all."""
    asks = group.get("stochastic_rounding") or group.get("state_dtype") is not None
    return bool(asks) or any(key.endswith(_SCALES) for key in state)


def why_not_whole(param: Tensor) -> str | None:
    """Why a parameter is not sampled that must be so as a whole, or None."""
    if local_of(param) is not param:
        return "rounding depends on the place in the whole tensor, of which this process has a part"
    too_large = f"rounding depends on the place in the tensor, which has more than {_LARGEST_WHOLE:,} elements"
    return too_large if param.numel() > _LARGEST_WHOLE else None


def take_sample(
    name: str,
    param: Tensor,
    group: dict[str, Any],
    state: dict[str, Any],
    elements: int,
    draw: torch.Generator,
    scalars: Collection[str] = ("step",),
    group_index: int = 0,
    number: int = 0,
) -> Sample:
    """Copy at most ``elements`` elements, those at both ends among them; or all, in their shape, where it must be."""
    count = local_of(param).numel()
    is_whole = must_be_whole(group, state)
    if count <= elements or is_whole:
        index = torch.arange(count, device="cpu")
    else:
        ends = min(_ENDS, elements // 2)
        middle = torch.randint(ends, count - ends, (elements - 2 * ends,), generator=draw, device="cpu")
        first, last = torch.arange(ends, device="cpu"), torch.arange(count - ends, count, device="cpu")
        index = torch.cat([first, middle, last])
    take = _whole if is_whole else taken
    copy = torch.nn.Parameter(take(param, index))
    if param.grad is not None and param.grad.dtype != param.dtype:
        copy.grad_dtype = param.grad.dtype
    copy.grad = take(param.grad, index)
    copied = {
        key: take(value, index) if key not in scalars and isinstance(value, Tensor) else _kept(value)
        for key, value in state.items()
    }
    options = {key: _kept(value) for key, value in group.items() if key not in ("params", "param_names")}
    options |= {"fused": None, "foreach": None, "params": [copy]}
    return Sample(name, param, index, options, group_index, copy, copied, number)


def taken(tensor: Any, index: Tensor) -> Tensor:
    """Elements of a tensor by their flat index, on the CPU."""
    plain = local_of(tensor).detach()
    return torch.take(plain, index.to(plain.device)).cpu()


def _whole(tensor: Any, _: Tensor) -> Tensor:
    copy: Tensor = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return copy


def rows_that_share(rows: Iterable[Iterable[Any]]) -> set[int]:
    """The rows of tensors in which one lies within the addresses of another tensor, of its own row or of another's."""
    ranges: list[tuple[str, int, int, int]] = []
    for row, tensors in enumerate(rows):
        for tensor in (local_of(each) for each in tensors if isinstance(each, Tensor)):
            if tensor.layout == torch.strided and tensor.numel() > 0:
                last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
                begin = tensor.data_ptr()
                ranges.append((str(tensor.device), begin, begin + (last + 1) * tensor.element_size(), row))
    ranges.sort()
    shared: set[int] = set()
    where, end, owner = "", 0, -1
    for device, begin, stop, row in ranges:
        if device == where and begin < end:
            shared |= {row, owner}
        if device != where or stop > end:
            where, end, owner = device, stop, row
    return shared


def _kept(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value
