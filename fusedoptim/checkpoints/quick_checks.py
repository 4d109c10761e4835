"""Quick checks, for state as optimizers save it. Where one fails, thorough checks say what is wrong, if anything."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from fusedoptim import reference
from fusedoptim.checkpoints.checks import MOST_STEPS, PLAIN
from fusedoptim.reference.parameters import shares_elements
from fusedoptim.settings import STORAGE

_STRIDED, _FLOAT = torch.strided, torch.float32


def is_usual(entry: Any, param: Tensor, names: Sequence[str], scalars: Collection[str], counts: list[Tensor]) -> bool:
    """Whether the state of a parameter is plainly what optimizers save.

    Args:
        entry: As in the file.
        param: The parameter.
        names: What the rule keeps for it.
        scalars: Which of these are numbers.
        counts: Takes those that are not on the host, for ``are_counts``.
    """
    if type(entry) is not dict or len(entry) != len(names) or type(param) not in PLAIN or param.is_nested:
        return False
    shape, dtype = param.shape, param.dtype
    for name in names:
        value = entry.get(name)
        if type(value) is not Tensor or value.layout is not _STRIDED or value.is_meta or value.is_nested:
            return False
        if name not in scalars:
            if value.dtype is not dtype or value.shape != shape:
                return False
        elif value.dtype is not _FLOAT or value.ndim != 0:
            return False
        elif not value.is_cpu:
            counts.append(value)
        elif not 0 <= value.item() <= MOST_STEPS:
            return False
    return True


def are_counts(counts: Sequence[Tensor]) -> bool:
    """Whether all can be step counts, or numbers beside them. Read together, since each read waits for the device."""
    if not counts:
        return True
    if len({count.device for count in counts}) > 1:
        return False
    with torch.no_grad():
        least, most = torch.stack(tuple(counts)).aminmax()  # NaN where there is one
    return least.item() >= 0 and most.item() <= MOST_STEPS


def is_apart(optimizer: Any) -> bool:
    """Whether no tensor overlaps itself or another one, and each lies within its storage."""
    rule = reference.RULES[optimizer._rule]
    params: list[Any] = []
    tensors: list[Any] = []
    for group in optimizer.param_groups:
        names = [name for name in rule.state_names(group) if name not in rule.scalars]
        asks = any(map(group.get, STORAGE))
        for param in group["params"]:
            if names and (entry := optimizer.state.get(param)):
                params.append(param)
                tensors += map(entry.get, rule.tensor_names(group, param, entry) if asks else names)
    everything = tensors + params
    if not set(map(type, everything)) <= set(PLAIN) or {x.layout for x in everything} - {torch.strided}:
        return False
    starts = [x.data_ptr() for x in everything]
    if all(x.is_contiguous() for x in everything):
        lengths = [x.nbytes for x in everything]
    elif any(map(shares_elements, everything)):
        return False
    else:
        lengths = list(map(_length, everything))
    ends = list(map(operator.add, starts, lengths))
    storages = [x.untyped_storage() for x in tensors]
    if any(map(operator.lt, [storage.data_ptr() + storage.nbytes() for storage in storages], ends)):
        return False
    starts.sort()
    ends.sort()  # the ranges meet nowhere if before each start as many have ended as have started
    return all(map(operator.le, ends, itertools.islice(starts, 1, None)))


def _length(tensor: Tensor) -> int:
    """Bytes from the first to the last element, that one included."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.itemsize if tensor.numel() else 0
