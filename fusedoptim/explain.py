"""``explain_step``: which path takes each parameter, and why no faster one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fusedoptim.from_torch import can_convert
from fusedoptim.reference.parameters import flag_for_torch, name_of
from fusedoptim.step import FusedStep


@dataclass(frozen=True)
class Explained:
    """Which path would take one parameter in the next step."""

    param: str
    """Its place, name, shape, dtype and device."""
    taken_by: str
    """``"fast path"``, ``"general path"``, ``"reference"`` or ``"torch"``; ``"nobody"``: the step raises."""
    reason: str
    """Why no faster path takes it; empty for the fast path and the reference."""

    def __str__(self) -> str:
        return f"{self.param}: {self.taken_by}" + (f", since {self.reason}" if self.reason else "")


class Explanation(list[Explained]):
    """One entry for each parameter that has a gradient; printed, a line for each."""

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "no parameter has a gradient, so a step would change nothing"


def explain_step(optimizer: Optimizer) -> Explanation:
    """Say for each parameter which path would take it in the next step, and why no faster one.

    The fast path takes nearly all; a parameter on the general path costs a few microseconds more, and one that torch's
    own implementation takes what it costs there. Nothing is changed. Gradients count, so call it between
    ``backward()`` and ``step()``.

    Args:
        optimizer: One of this package's optimizers.

    Raises:
        TypeError: ``optimizer`` is not one of this package's, or its params can be read only once.

    Example:
        >>> import torch, fusedoptim
        >>> weight, phase = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
        >>> optimizer = fusedoptim.Adam([weight, phase])
        >>> (weight.sum() + phase.abs().sum()).backward()
        >>> optimizer.step()
        >>> print(fusedoptim.explain_step(optimizer))
        parameter 0 of group 0 (shape (3,), torch.float32, cpu): fast path
        parameter 1 of group 0 (shape (2,), torch.complex64, cpu): torch, since its dtype is not float64, float32, \
bfloat16 or float16
    """
    if not isinstance(optimizer, FusedStep):
        name = type(optimizer).__name__
        hint = "fusedoptim.from_torch makes one of torch's class of the same name"
        if type(optimizer).__module__.split(".")[:2] == ["torch", "optim"] and not can_convert(optimizer):
            hint = f"it is torch's own {name}, of which there is nothing to explain"
        raise TypeError(f"optimizer must be one of fusedoptim's, got {name}; {hint}")
    groups: list[dict[str, Any]] = optimizer.param_groups
    for g, group in enumerate(groups):
        if iter(group["params"]) is group["params"]:
            raise TypeError(f"params of group {g} can be read once only, which is the step's: make them a list")
    places = [(g, i) for g, group in enumerate(groups) for i, p in enumerate(group["params"]) if p.grad is not None]
    why_torch = optimizer._why_torch()
    if why_torch is not None:
        found = [(g, i, "torch", why_torch) for g, i in places]
    else:
        try:
            found = optimizer._new_executor().explain(groups, optimizer.state, optimizer._new_state)
            found = [_of_torch(optimizer, each) if each[2] in ("torch", "nobody") else each for each in found]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:  # options that no step can be taken with
            found = [(g, i, "nobody", str(error)) for g, i in places]
    return Explanation(
        Explained(name_of(list(groups[g]["params"])[i], groups[g], g, i), who, why) for g, i, who, why in found
    )


def _of_torch(optimizer: FusedStep, found: tuple[int, int, str, str]) -> tuple[int, int, str, str]:
    """The same, with what torch's implementation refuses too, and the flag by which the user asked for torch."""
    g, i, who, why = found
    group = optimizer.param_groups[g]
    grad: Tensor = list(group["params"])[i].grad
    if isinstance(optimizer, torch.optim.Adam) and grad.is_sparse:
        theirs = optimizer._torch_class.__name__
        return g, i, "nobody", f"its gradient is sparse, which torch's {theirs} refuses as well: use SparseAdam"
    flag = flag_for_torch(group)
    return g, i, who, why if flag is None else f"{why}: {flag}"
