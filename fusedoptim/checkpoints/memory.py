"""Each element of a loaded state needs memory of its own: a file can say that two tensors are one, or one expanded."""

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

_CURE = "give each tensor memory of its own with clone()"


def name_of(optimizer: Optimizer, group: int, position: int) -> str:
    """A parameter, as errors name it."""
    param = optimizer.param_groups[group]["params"][position]
    names = optimizer.param_groups[group].get("param_names")
    called = f"'{names[position]}', " if names else ""
    shape = "unknown" if torch.nn.parameter.is_lazy(param) or param.is_nested else tuple(param.shape)
    return f"parameter {position} of group {group} ({called}shape {shape}, {param.dtype}, {param.device})"


@dataclass
class _Stretch:
    """The memory from the first to the last element of a tensor."""

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
    by_device: dict[torch.device, list[_Stretch]] = {}
    seen: set[int] = set()  # one parameter may be listed twice
    for index, group in enumerate(optimizer.param_groups):
        names = [name for name in rule.state_names(group) if name != "step"]
        for position, param in enumerate(group["params"]):
            entry = optimizer.state.get(param)
            if not entry or type(param) not in PLAIN or id(param) in seen:
                continue
            seen.add(id(param))
            for name, tensor in [("", param), *((name, entry.get(name)) for name in names)]:
                if type(tensor) in PLAIN and tensor.layout == torch.strided and not tensor.is_meta and tensor.numel():
                    stretch = _stretch(tensor, (index, position, name))
                    if name:
                        _check_alone(optimizer, stretch)
                    by_device.setdefault(tensor.device, []).append(stretch)
    for stretches in by_device.values():
        _check_together(optimizer, stretches)


def _stretch(tensor: Tensor, of: tuple[int, int, str]) -> _Stretch:
    start, dense = tensor.data_ptr(), tensor.is_contiguous()
    last = tensor.numel() - 1
    if not dense:
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        dense = last == tensor.numel() - 1
    return _Stretch(start, start + (last + 1) * tensor.element_size(), dense, tensor, of)


def _check_alone(optimizer: Optimizer, stretch: _Stretch) -> None:
    tensor = stretch.tensor
    storage = tensor.untyped_storage()
    length = stretch.end - stretch.start
    problem = None
    if tensor.storage_offset() * tensor.element_size() + length > storage.nbytes():
        problem = f"needs {length} bytes of a storage that has {storage.nbytes()}"
    elif not tensor.is_contiguous() and shares_elements(tensor) and _has_repeated(_places(stretch)):
        problem = "has elements that share memory"
    if problem is not None:
        raise StateError(_said(optimizer, stretch), problem, _CURE)


def _check_together(optimizer: Optimizer, stretches: list[_Stretch]) -> None:
    """Find two that share elements, of which one at least is of a state: parameters may share theirs."""
    stretches.sort(key=lambda stretch: stretch.start)
    cluster: list[_Stretch] = []
    farthest = stretches[0]
    for stretch in stretches:
        if cluster and stretch.start < farthest.end:
            if stretch.dense and farthest.dense:
                _refuse(optimizer, farthest, stretch)
            cluster.append(stretch)
        else:
            _check_cluster(optimizer, cluster)
            cluster = [stretch]
        if len(cluster) == 1 or stretch.end > farthest.end:
            farthest = stretch
    _check_cluster(optimizer, cluster)


def _check_cluster(optimizer: Optimizer, cluster: list[_Stretch]) -> None:
    """Compare elements where stretches overlap, as those of the columns of one matrix do."""
    if len(cluster) < 2 or not any(stretch.of[2] for stretch in cluster):
        return
    places = [_places(stretch) for stretch in cluster]
    if not _has_repeated(torch.cat(places)):
        return
    for i, mine in enumerate(places):
        for j in range(i):
            if torch.isin(mine, places[j]).any():
                _refuse(optimizer, cluster[j], cluster[i])


def _refuse(optimizer: Optimizer, one: _Stretch, other: _Stretch) -> None:
    if one.of[2] or other.of[2]:
        if not one.of[2]:
            one, other = other, one
        raise StateError(_said(optimizer, one), f"shares memory with {_said(optimizer, other)}", _CURE)


def _places(stretch: _Stretch) -> Tensor:
    """The address of each element."""
    places = torch.zeros((), dtype=torch.int64, device="cpu")
    for size, stride in zip(stretch.tensor.shape, stretch.tensor.stride(), strict=True):
        places = places.unsqueeze(-1) + torch.arange(size, device="cpu") * stride
    return places.flatten() * stretch.tensor.element_size() + stretch.start


def _has_repeated(places: Tensor) -> bool:
    ordered = places.sort().values
    return bool((ordered[1:] == ordered[:-1]).any())


def _said(optimizer: Optimizer, stretch: _Stretch) -> str:
    index, position, name = stretch.of
    param = name_of(optimizer, index, position)
    return f"state['{name}'] of {param}" if name else param
