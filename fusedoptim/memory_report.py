"""What the tensors of an optimizer take, by kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusedoptim.reference.rule import Rule
from fusedoptim.reference.rules import RULES
from fusedoptim.reference.storage import companion_of, dtype_of_new, scale_shape
from fusedoptim.torch_internals.dtensor import local_of

_COMPANION_BYTES = {"master": 4, "remainder": 2, "compensation": 2}


class Memory(dict[str, int]):
    """Bytes by kind: ``parameters``, ``gradients``, and the names of the state. Prints as a table."""

    def __init__(self, kinds: dict[str, int], elements: int) -> None:
        super().__init__(kinds)
        self.elements = elements

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self.values())

    def __str__(self) -> str:
        rows = [*self.items(), ("total", self.total)]
        return "\n".join(
            f"{kind:24}{size / 2**20:12,.2f} MiB {size / max(self.elements, 1):8.3f} bytes a parameter"
            for kind, size in rows
        )


def memory(optimizer: Any) -> Memory:
    """What parameters, gradients and state of an optimizer of this package take.

    State that a parameter has not got yet counts as the next step will make it, so that settings can be compared
    before training. Of DTensors, what this process holds counts.

    Example:
        >>> import torch
        >>> import fusedoptim
        >>> p = torch.nn.Parameter(torch.zeros(64, 64))
        >>> sum(fusedoptim.memory(fusedoptim.AdamW([p])).values())
        49156
        >>> sum(fusedoptim.memory(fusedoptim.AdamW([p], state_dtype="8bit")).values())
        25092
    """
    rule = RULES[optimizer._rule]
    kinds: dict[str, int] = {"parameters": 0, "gradients": 0}
    elements = 0
    for group in optimizer.param_groups:
        for param in group["params"]:
            local = local_of(param)
            elements += local.numel()
            kinds["parameters"] += local.nbytes
            kinds["gradients"] += 0 if param.grad is None else local_of(param.grad).nbytes
            own = optimizer.state.get(param, {})
            for name in rule.state_names(group, local):
                for key, size in _bytes_of(name, own, group, param, rule).items():
                    kinds[key] = kinds.get(key, 0) + size
    return Memory(kinds, elements)


def _bytes_of(name: str, own: Any, group: Any, param: Tensor, rule: Rule) -> dict[str, int]:
    local = local_of(param)
    if isinstance(own.get(name), Tensor):
        names = (name, f"{name}_scale")
        return {key: local_of(own[key]).nbytes for key in names if isinstance(own.get(key), Tensor)}
    if name in rule.scalars:
        return {name: 4}
    kind = companion_of(group, local)
    if name not in rule.own_state(group):
        each = local.itemsize if name == "ema" or kind is None else _COMPANION_BYTES[kind]
        return {name: local.numel() * each}
    dtype = dtype_of_new(name, group, param)
    if dtype != torch.uint8:
        return {name: local.numel() * dtype.itemsize}
    return {name: local.numel(), f"{name}_scale": 4 * torch.Size(scale_shape(local.shape)).numel()}
