"""Hooks that note when they run, for tests of when they do."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import fusedoptim

KINDS = ["global pre", "pre", "post", "global post"]  # in the order of torch
MODULES: list[Any] = [fusedoptim, torch.optim]


def closure() -> str:
    return "loss"


def optimizer_of(make: Callable[[list[Parameter]], Any], dtype: torch.dtype = torch.float32) -> Any:
    weight = Parameter(torch.ones(3, dtype=dtype))
    weight.grad = torch.ones(3, dtype=dtype)
    return make([weight])


def steps_taken(optimizer: Any) -> list[float]:
    return [float(state["step"]) for state in optimizer.state.values()]


class Hooks:
    """Hooks that note when they run, for which optimizer, and with what."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, tuple[Any, ...], dict[str, Any]]] = []
        self.handles: list[Any] = []

    def note(self, kind: str, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert args[0] is optimizer
        self.calls.append((kind, optimizer, args[1:], dict(kwargs)))

    def register(self, optimizer: Any, kinds: list[str] = KINDS) -> None:
        """Global ones are of all optimizers, and are registered once."""
        register = {
            "global pre": register_optimizer_step_pre_hook,
            "pre": optimizer.register_step_pre_hook,
            "post": optimizer.register_step_post_hook,
            "global post": register_optimizer_step_post_hook,
        }
        self.handles += [register[kind](functools.partial(self.note, kind)) for kind in kinds]

    def remove(self) -> None:
        while self.handles:
            self.handles.pop().remove()

    def kinds(self) -> list[str]:
        kinds = [call[0] for call in self.calls]
        self.calls.clear()
        return kinds

    def ran_once(self, *args: Any, **kwargs: Any) -> bool:
        """Whether each kind ran once since the last question, with these arguments."""
        same = [call[2:] for call in self.calls] == [(args, kwargs)] * len(KINDS)
        return self.kinds() == KINDS and same


@pytest.fixture
def hooks() -> Iterator[Hooks]:
    hooks = Hooks()
    yield hooks
    hooks.remove()


def calls_super(base: Any, times: int = 1) -> Any:
    """A subclass that overrides step."""

    class Sub(base):
        def step(self, closure: Any = None) -> Any:
            for _ in range(times):
                result = super().step(closure)
            return result

    return Sub
