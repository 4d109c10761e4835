"""Memory overlap in a loaded state: a file can say that two tensors share memory, or that one is expanded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fusedoptim import reference
from fusedoptim.checkpoints.checks import PLAIN
from fusedoptim.checkpoints.keys import StateError
from fusedoptim.checkpoints.quick_checks import is_apart
from fusedoptim.reference.parameters import shares_elements

_HINT = "give each tensor memory of its own with clone()"


def name_of(optimizer: Optimizer, group: int, position: int) -> str:
    """A parameter, as errors name it."""
    param = optimizer.param_groups[group]["params"][position]
    names = optimizer.param_groups[group].get("param_names")
    called = f"'{names[position]}', " if names else ""
    shape = "unknown" if torch.nn.parameter.is_lazy(param) or param.is_nested else tuple(param.shape)
    return f"parameter {position} of group {group} ({called}shape {shape}, {param.dtype}, {param.device})"


@dataclass
class _MemoryRange:
    """The address range from the first to the last element of a tensor."""

    start: int
    end: int
    dense: bool
    tensor: Tensor
    of: tuple[int, int, str]  # group, position, and the name in the state, "" for the parameter


def check_memory(optimizer: Any) -> None:
    """Check the state of all parameters, as it will be stepped on.

    Raises:
        StateError: Two tensors of the state share elements, or one with its parameter, or a tensor with itself; or its
            memory is gone.
    """
    if is_apart(optimizer):
        return
    rule = reference.RULES[optimizer._rule]
    by_device: dict[torch.device, list[_MemoryRange]] = {}
    seen: set[int] = set()  # one parameter may be listed twice
    for index, group in enumerate(optimizer.param_groups):
        for position, param in enumerate(group["params"]):
            entry = optimizer.state.get(param)
            if not entry or type(param) not in PLAIN or id(param) in seen:
                continue
            seen.add(id(param))
            for name, tensor in [
                ("", param),
                *((name, entry.get(name)) for name in rule.tensor_names(group, param, entry)),
            ]:
                if type(tensor) in PLAIN and tensor.layout == torch.strided and not tensor.is_meta and tensor.numel():
                    range_ = _memory_range(tensor, (index, position, name))
                    if name:
                        _check_alone(optimizer, range_)
                    by_device.setdefault(tensor.device, []).append(range_)
    for ranges in by_device.values():
        _check_together(optimizer, ranges)


def _memory_range(tensor: Tensor, of: tuple[int, int, str]) -> _MemoryRange:
    start, dense = tensor.data_ptr(), tensor.is_contiguous()
    last = tensor.numel() - 1
    if not dense:
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        dense = last == tensor.numel() - 1
    return _MemoryRange(start, start + (last + 1) * tensor.element_size(), dense, tensor, of)


def _check_alone(optimizer: Optimizer, range_: _MemoryRange) -> None:
    tensor = range_.tensor
    storage = tensor.untyped_storage()
    length = range_.end - range_.start
    problem = None
    if tensor.storage_offset() * tensor.element_size() + length > storage.nbytes():
        problem = f"needs {length} bytes of a storage that has {storage.nbytes()}"
    elif not tensor.is_contiguous() and shares_elements(tensor) and _has_repeated(_addresses(range_)):
        problem = "has elements that share memory"
    if problem is not None:
        raise StateError(_describe(optimizer, range_), problem, _HINT)


def _check_together(optimizer: Optimizer, ranges: list[_MemoryRange]) -> None:
    """Find two ranges that share elements, at least one of a state: parameters may share memory with one another."""
    ranges.sort(key=lambda range_: range_.start)
    cluster: list[_MemoryRange] = []
    farthest = ranges[0]
    for range_ in ranges:
        if cluster and range_.start < farthest.end:
            if range_.dense and farthest.dense:
                _refuse(optimizer, farthest, range_)
            cluster.append(range_)
        else:
            _check_cluster(optimizer, cluster)
            cluster = [range_]
        if len(cluster) == 1 or range_.end > farthest.end:
            farthest = range_
    _check_cluster(optimizer, cluster)


def _check_cluster(optimizer: Optimizer, cluster: list[_MemoryRange]) -> None:
    """Compare elements where ranges overlap, as those of the columns of one matrix do."""
    if len(cluster) < 2 or not any(range_.of[2] for range_ in cluster):
        return
    places = [_addresses(range_) for range_ in cluster]
    if not _has_repeated(torch.cat(places)):
        return
    for i, mine in enumerate(places):
        for j in range(i):
            if torch.isin(mine, places[j]).any():
                _refuse(optimizer, cluster[j], cluster[i])


def _refuse(optimizer: Optimizer, one: _MemoryRange, other: _MemoryRange) -> None:
    if one.of[2] or other.of[2]:
        if not one.of[2]:
            one, other = other, one
        raise StateError(_describe(optimizer, one), f"shares memory with {_describe(optimizer, other)}", _HINT)


def _addresses(range_: _MemoryRange) -> Tensor:
    """The address of each element."""
    places = torch.zeros((), dtype=torch.int64, device="cpu")
    for size, stride in zip(range_.tensor.shape, range_.tensor.stride(), strict=True):
        places = places.unsqueeze(-1) + torch.arange(size, device="cpu") * stride
    return places.flatten() * range_.tensor.element_size() + range_.start


def _has_repeated(places: Tensor) -> bool:
    ordered = places.sort().values
    return bool((ordered[1:] == ordered[:-1]).any())


def _describe(optimizer: Optimizer, range_: _MemoryRange) -> str:
    index, position, name = range_.of
    param = name_of(optimizer, index, position)
    return f"state['{name}'] of {param}" if name else param
