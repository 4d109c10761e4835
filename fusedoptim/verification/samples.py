"""Samples for verification: some elements of a parameter, its gradient and its state, copied to the CPU."""

from __future__ import annotations

from collections.abc import Iterable
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


def take_sample(
    name: str,
    param: Tensor,
    group: dict[str, Any],
    state: dict[str, Any],
    elements: int,
    draw: torch.Generator,
    group_index: int = 0,
) -> Sample:
    """Copy at most ``elements`` elements, those at both ends among them."""
    count = local_of(param).numel()
    if count <= elements:
        index = torch.arange(count, device="cpu")
    else:
        ends = min(_ENDS, elements // 2)
        middle = torch.randint(ends, count - ends, (elements - 2 * ends,), generator=draw, device="cpu")
        first, last = torch.arange(ends, device="cpu"), torch.arange(count - ends, count, device="cpu")
        index = torch.cat([first, middle, last])
    copy = torch.nn.Parameter(taken(param, index))
    copy.grad = taken(param.grad, index)
    copied = {
        key: taken(value, index) if key != "step" and isinstance(value, Tensor) else _kept(value)
        for key, value in state.items()
    }
    options = {key: _kept(value) for key, value in group.items() if key not in ("params", "param_names")}
    options |= {"fused": None, "foreach": None, "params": [copy]}
    return Sample(name, param, index, options, group_index, copy, copied)


def taken(tensor: Any, index: Tensor) -> Tensor:
    """Elements of a tensor by their flat index, on the CPU."""
    plain = local_of(tensor).detach()
    return torch.take(plain, index.to(plain.device)).cpu()


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
