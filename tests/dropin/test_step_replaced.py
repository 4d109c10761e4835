"""Hooks of steps run once for each step that the user calls, however ``step`` was overridden, wrapped or replaced.

Torch runs them again for each ``super().step()``, or not, by which classes were instantiated before. Ours do not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import helpers
import hook_notes
import pytest
import torch
from helpers import run_python
from hook_notes import Hooks, calls_super, closure, optimizer_of, steps_taken
from torch.optim.lr_scheduler import StepLR

import fusedoptim

path, hooks = helpers.path, hook_notes.hooks
pytestmark = pytest.mark.usefixtures("path")


def as_detectron_does(optimizer: Any) -> None:
    base = type(optimizer)

    def step(self: Any, closure: Any = None) -> Any:
        return base.step(self, closure)

    optimizer.__class__ = type("WithClip", (base,), {"step": step})


def on_instance(optimizer: Any) -> None:
    step = optimizer.step
    optimizer.step = lambda *args, **kwargs: step(*args, **kwargs)


def by_name_on_instance(optimizer: Any) -> None:
    optimizer.step = functools.partial(type(optimizer).step, optimizer)


class Mixin:
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)  # type: ignore[misc]


class Cooperative(Mixin, fusedoptim.Adam):
    pass


class Plain(fusedoptim.Adam):
    pass


MADE: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "a subclass that overrides nothing": (lambda: Plain, lambda o: None),
    "a subclass": (lambda: calls_super(fusedoptim.Adam), lambda o: None),
    "a subclass of AdamW": (lambda: calls_super(fusedoptim.AdamW), lambda o: None),
    "a subclass of a subclass": (lambda: calls_super(calls_super(fusedoptim.Adam)), lambda o: None),
    "a plain one of an overriding one": (lambda: type("Sub", (calls_super(fusedoptim.Adam),), {}), lambda o: None),
    "a mixin": (lambda: Cooperative, lambda o: None),
    "its class replaced": (lambda: fusedoptim.Adam, as_detectron_does),
    "a subclass, its class replaced": (lambda: calls_super(fusedoptim.Adam), as_detectron_does),
    "its class replaced twice": (lambda: fusedoptim.Adam, lambda o: (as_detectron_does(o), as_detectron_does(o))),
    "assigned": (lambda: fusedoptim.Adam, on_instance),
    "assigned twice": (lambda: fusedoptim.Adam, lambda o: (on_instance(o), on_instance(o))),
    "assigned by name": (lambda: fusedoptim.Adam, by_name_on_instance),
    "assigned on a subclass": (lambda: calls_super(fusedoptim.Adam), on_instance),
    "a scheduler": (lambda: fusedoptim.Adam, lambda o: StepLR(o, 1)),
    "a scheduler of a subclass": (lambda: calls_super(fusedoptim.Adam), lambda o: StepLR(o, 1)),
    "assigned over a scheduler": (lambda: fusedoptim.Adam, lambda o: (StepLR(o, 1), on_instance(o))),
    "its class replaced under a scheduler": (lambda: fusedoptim.Adam, lambda o: (StepLR(o, 1), as_detectron_does(o))),
}  # fmt: skip


@pytest.mark.parametrize(("cls", "change"), MADE.values(), ids=MADE)
def test_hooks_run_once(cls: Callable[[], Any], change: Callable[[Any], Any], hooks: Hooks) -> None:
    optimizer = optimizer_of(cls())
    change(optimizer)
    optimizer.step(closure)
    hooks.register(optimizer)
    for count in (2, 3):
        assert optimizer.step(closure) == "loss"
        assert steps_taken(optimizer) == [count]
        assert hooks.ran_once(closure)


def test_a_step_that_is_several_updates(hooks: Hooks) -> None:
    optimizer = optimizer_of(calls_super(fusedoptim.Adam, times=2))
    hooks.register(optimizer)
    optimizer.step(closure)
    assert steps_taken(optimizer) == [2]
    assert hooks.ran_once(closure)


def test_an_override_that_passes_other_arguments_on(hooks: Hooks) -> None:
    """Hooks see those of the outermost call."""

    class Sub(fusedoptim.Adam):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            return super().step(None, zero_grad="to_none")

    optimizer = optimizer_of(Sub)
    hooks.register(optimizer)
    optimizer.step(closure=closure)
    assert hooks.ran_once(closure=closure)


@pytest.mark.parametrize("cls", [fusedoptim.Adam, fusedoptim.SGD, fusedoptim.step.FusedStep])
@pytest.mark.parametrize("made_before", [True, False])
@pytest.mark.parametrize("another_made", [True, False])
def test_the_class_is_patched(
    cls: Any, made_before: bool, another_made: bool, hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    concrete = fusedoptim.Adam if cls is fusedoptim.step.FusedStep else cls
    optimizer = optimizer_of(concrete) if made_before else None
    original = cls.step
    for each in {cls, concrete}:  # torch may wrap what it finds on the class of an instance: undone afterwards
        monkeypatch.setattr(each, "step", each.step)
        if each is not cls:
            monkeypatch.delattr(each, "step")
    monkeypatch.setattr(cls, "step", lambda self, *args, **kwargs: original(self, *args, **kwargs))
    optimizer = optimizer or optimizer_of(concrete)
    if another_made:
        optimizer_of(concrete)
    hooks.register(optimizer)
    for _ in range(2):
        assert optimizer.step(closure) == "loss"
        assert hooks.ran_once(closure)


def test_a_patch_that_is_undone(hooks: Hooks) -> None:
    optimizer = optimizer_of(fusedoptim.Adam)
    with pytest.MonkeyPatch.context() as patch:
        original = fusedoptim.Adam.step
        patch.setattr(fusedoptim.Adam, "step", lambda self, *args: original(self, *args))
        optimizer_of(fusedoptim.Adam)
    hooks.register(optimizer)
    optimizer.step(closure)
    assert hooks.ran_once(closure)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_what_torch_takes_has_its_hooks_once(dtype: torch.dtype, hooks: Hooks) -> None:
    """Torch's own step is wrapped as soon as one of its optimizers has been made."""
    optimizer_of(torch.optim.Adam).step()
    for make in (fusedoptim.Adam, calls_super(fusedoptim.Adam)):
        optimizer = optimizer_of(make, dtype)
        hooks.register(optimizer)
        optimizer.step(closure)
        assert hooks.ran_once(closure)
        hooks.remove()


def test_whether_torchs_class_was_instantiated_before(path: str) -> None:
    """Only then torch has wrapped the step of that class."""
    code = f"""
import torch, fusedoptim
from torch.optim.optimizer import register_optimizer_step_post_hook as register
fusedoptim.set_backend({path.removesuffix("-general")!r})
weight = torch.nn.Parameter(torch.ones(3))
weight.grad = torch.ones(3)
register(lambda optimizer, *_: print(type(optimizer).__name__))
for make_before in (lambda _: None, fusedoptim.Adam, torch.optim.Adam):
    make_before([weight])
    class Sub(fusedoptim.Adam):
        def step(self, closure=None):
            return super().step(closure)
    Sub([weight]).step()
fusedoptim.Adam([weight]).step()
"""
    assert run_python(code) == "Sub\nSub\nSub\nAdam\n"
