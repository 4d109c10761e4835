"""Exponential moving averages of the parameters, updated by the step: ``ema_decay``."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fusedoptim.reference.parameters import average_decay, name_of


def averages_to_move(optimizer: Any, lists: Iterable[Iterable[Tensor]]) -> list[tuple[Tensor, float]]:
    """Of the parameters that torch's implementation will step, those with averages, and the decay.

    Args:
        optimizer: Whose they are.
        lists: The parameters, one list for each group.

    Raises:
        RuntimeError: The average of one is not a tensor of its shape; before anything is written.
    """
    moves = []
    for index, (group, params) in enumerate(zip(optimizer.param_groups, lists, strict=True)):
        decay = average_decay(group)
        for param in params if decay is not None else ():
            if param.grad is None:
                continue
            average = optimizer.state.get(param, {}).get("ema")
            if average is not None and getattr(average, "shape", None) != param.shape:
                where = f"a parameter of shape {tuple(param.shape)} in group {index}"
                raise RuntimeError(
                    f"ema must be a tensor of the shape of its parameter in {where}; remove it to start anew"
                )
            moves.append((param, decay or 0.0))
    return moves


def move_averages(optimizer: Any, moves: Iterable[tuple[Tensor, float]]) -> None:
    """Update the averages after the parameters were stepped."""
    for param, decay in moves:
        state = optimizer.state[param]
        with torch.no_grad():
            if state.get("ema") is None:
                state["ema"] = param.detach().clone(memory_format=torch.preserve_format)
            else:
                state["ema"].lerp_(param, 1 - decay)


def _pairs(optimizer: Any) -> list[tuple[Tensor, Tensor]]:
    """The parameters that have averages, each with its average."""
    found = {}
    for group in optimizer.param_groups:
        for param in group["params"]:
            average = optimizer.state.get(param, {}).get("ema")
            if average is not None:
                found[param] = average
    return list(found.items())


def _refuse(*_: Any, **__: Any) -> None:
    raise RuntimeError("step() within averaged_parameters() would update the averages: leave its block first")


@contextmanager
def averaged(optimizer: Any) -> Generator[None]:
    """See ``FusedStep.averaged_parameters``."""
    if "_take_step" in optimizer.__dict__:
        raise RuntimeError("averaged_parameters() is active already: leave its block first")
    pairs = _pairs(optimizer)
    with torch.no_grad():
        own = [(param, param.detach().clone(memory_format=torch.preserve_format)) for param, _ in pairs]
    optimizer.__dict__["_take_step"] = _refuse  # in place of the method
    try:
        with torch.no_grad():
            for param, average in pairs:
                param.copy_(average)
        yield
    finally:
        with torch.no_grad():
            for param, before in own:
                param.copy_(before)
        del optimizer.__dict__["_take_step"]


def copy_averages(optimizer: Any, target: torch.nn.Module | Iterable[Tensor]) -> None:
    """See ``FusedStep.copy_averages_to``."""
    own = [
        (param, name_of(param, group, index, position), (group.get("param_names") or {position: None})[position])
        for index, group in enumerate(optimizer.param_groups)
        for position, param in enumerate(group["params"])
    ]
    if isinstance(target, torch.nn.Module) and all(name is not None for *_, name in own):
        named = dict(target.named_parameters())
        missing = [name for *_, name in own if name not in named]
        if missing:
            raise ValueError(f"target has no parameter {missing[0]!r}: pass a copy of the module, or its parameters")
        others: list[Tensor] = [named[name] for *_, name in own]
    else:
        parameters: Iterable[Tensor] = target.parameters() if isinstance(target, torch.nn.Module) else target
        others = list(parameters)
    if len(others) != len(own):
        raise ValueError(f"target has {len(others)} parameters, and the optimizer has {len(own)}: pass as many")
    for (param, name, _), other in zip(own, others, strict=True):
        if param.shape != other.shape:
            raise ValueError(f"target has a parameter of shape {tuple(other.shape)} for {name}: pass them in its order")
    with torch.no_grad():
        for (param, *_), other in zip(own, others, strict=True):
            average = optimizer.state.get(param, {}).get("ema")
            other.copy_(param if average is None else average)
