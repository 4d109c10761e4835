"""The for-loop of an optimizer that torch does not have, for what the kernels do not take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from fusedoptim.reference.parameters import as_numbers
from fusedoptim.reference.passes import prepare_grad
from fusedoptim.reference.rule import length_of, options_of, range_of
from fusedoptim.reference.rules import RULES
from fusedoptim.storage import new_state


class ReferenceLoop(Optimizer):
    """What torch's classes are to the other optimizers: constructor, defaults, and a step in torch's operations.

    A subclass names its rule, and has a constructor that passes its options on, in ``defaults``.
    """

    _rule: ClassVar[str]

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        for name, kind in options_of(RULES[self._rule].update).items():
            low, high = range_of(name)
            for value in defaults[name] if length_of(kind) else [defaults[name]]:
                if not low <= value <= high:
                    wanted = "at least 0 and less than 1" if high < 1 else f"at least {low:g}"
                    raise ValueError(f"{name} must be {wanted}, got {defaults[name]!r}")
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update all parameters that have a gradient, one after the other; returns what ``closure`` does."""
        self._check_ready()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for index, group in enumerate(self.param_groups):
            options = as_numbers(RULES[self._rule], group, index)
            pairs = [(param, param.grad) for param in group["params"] if param.grad is not None]
            for param, grad in pairs:
                if grad.is_sparse:
                    raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
                if not self.state[param]:
                    self.state[param].update(new_state(RULES[self._rule], param, group))
            for param, grad in pairs:
                self._step_one(param, prepare_grad(_real(grad), maximize=bool(group.get("maximize"))), options)
            if (advance := RULES[self._rule].advance_group) is not None:
                group.update(advance(options))
        return loss

    def _check_ready(self) -> None:
        """Raise where no step can be taken now."""

    def _step_one(self, param: Tensor, grad: Tensor, options: dict[str, Any]) -> None:
        """Update one parameter; of a complex one both parts."""
        rule, state = RULES[self._rule], self.state[param]
        own = {name: _real(state[name]) for name in rule.own_state(options)}
        if "step" in state:
            state["step"] += 1
        step = float(state.get("step", options.get("k", 0) + 1))
        new_param, changed = rule.update(_real(param), grad, own, step, **options)
        _real(param).copy_(new_param)
        for name, value in changed.items():
            own[name].copy_(value)


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
