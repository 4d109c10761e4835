"""Hooks of steps: when they run, and what they are given."""

from __future__ import annotations

import threading
from typing import Any

import helpers
import hook_notes
import pytest
import torch
from helpers import count_calls
from hook_notes import KINDS, MODULES, Hooks, calls_super, closure, optimizer_of, steps_taken
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import fusedoptim

path, hooks = helpers.path, hook_notes.hooks
pytestmark = pytest.mark.usefixtures("path")

# Arguments.

CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}), ((None,), {}), ((closure,), {}), ((), {"closure": None}), ((), {"closure": closure}),
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(("args", "kwargs"), CALLS, ids=range(len(CALLS)))
def test_hooks_see_what_the_caller_passed(module: Any, args: Any, kwargs: Any, hooks: Hooks) -> None:
    optimizer = optimizer_of(module.Adam)
    hooks.register(optimizer)
    for _ in range(2):
        assert optimizer.step(*args, **kwargs) == ("loss" if closure in (*args, *kwargs.values()) else None)
        assert hooks.ran_once(*args, **kwargs)


@pytest.mark.parametrize("kwargs", [{"zero_grad": None}, {"zero_grad": "to_none"}, {"zero_grad": "to_zero"}], ids=str)
def test_hooks_see_our_own_argument(kwargs: dict[str, Any], hooks: Hooks) -> None:
    optimizer = optimizer_of(fusedoptim.Adam)
    hooks.register(optimizer)
    optimizer.step(closure, **kwargs)
    assert hooks.ran_once(closure, **kwargs)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("given", [((), {}), ((closure,), {}), ((), {"closure": closure})], ids=range(3))
@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("is_global", [True, False])
def test_a_pre_hook_may_pass_other_arguments_on(
    module: Any, given: Any, by_name: bool, is_global: bool, hooks: Hooks
) -> None:
    optimizer = optimizer_of(module.Adam)

    def other() -> str:
        return "other loss"

    def change(optimizer: Any, args: Any, kwargs: Any) -> Any:
        return ((optimizer,), {"closure": other}) if by_name else ((optimizer, other), {})

    register = register_optimizer_step_pre_hook if is_global else optimizer.register_step_pre_hook
    hooks.handles.append(register(change))
    hooks.register(optimizer, ["post"])
    assert optimizer.step(*given[0], **given[1]) == "other loss"
    assert hooks.calls == [("post", optimizer, *(((), {"closure": other}) if by_name else ((other,), {})))]


def test_a_pre_hook_may_pass_our_own_argument_on(hooks: Hooks) -> None:
    optimizer = optimizer_of(fusedoptim.Adam)
    hooks.handles.append(optimizer.register_step_pre_hook(lambda o, args, kwargs: (args, {"zero_grad": "to_none"})))
    optimizer.step()
    assert optimizer.param_groups[0]["params"][0].grad is None


@pytest.mark.parametrize("module", MODULES)
def test_a_pre_hook_that_returns_something_else(module: Any) -> None:
    optimizer = optimizer_of(module.Adam)
    optimizer.register_step_pre_hook(lambda *_: "x")
    with pytest.raises(RuntimeError, match=r"must return None or a tuple of \(new_args, new_kwargs\), but got x"):
        optimizer.step()
    assert steps_taken(optimizer) == []


# Which hooks there are.


@pytest.mark.parametrize("kind", KINDS)
def test_a_lone_hook(kind: str, hooks: Hooks) -> None:
    optimizer = optimizer_of(fusedoptim.Adam)
    optimizer.step()
    hooks.register(optimizer, [kind])
    for _ in range(2):
        optimizer.step()
        assert hooks.kinds() == [kind]
    hooks.remove()
    optimizer.step()
    assert hooks.kinds() == []


def test_pre_hooks_run_before_the_update_and_post_hooks_after_it(hooks: Hooks) -> None:
    optimizer = optimizer_of(fusedoptim.Adam)
    optimizer.step()
    seen: list[Any] = []
    hooks.handles += [
        register(lambda *_: seen.append(steps_taken(optimizer)[0]))
        for register in (
            register_optimizer_step_pre_hook,
            optimizer.register_step_pre_hook,
            optimizer.register_step_post_hook,
            register_optimizer_step_post_hook,
        )
    ]
    optimizer.step(lambda: seen.append("closure"))
    assert seen == [1, 1, "closure", 2, 2]


@pytest.mark.parametrize("late", [["post", "global post"], ["post"], ["global post"]], ids=" and ".join)
def test_hooks_registered_during_a_step(hooks: Hooks, late: list[str]) -> None:
    """Torch looks for them when it comes to them; of ours also the first ones run, though there were none before."""
    kinds = []
    for module in MODULES:
        optimizer = optimizer_of(module.Adam)
        optimizer.step(lambda o=optimizer: hooks.register(o, late))
        optimizer.step(hooks.remove)
        optimizer.step()
        kinds.append(hooks.kinds())
    assert kinds[0] == kinds[1] == late


@pytest.mark.parametrize("hooked", [False, True])
def test_torchs_profiler_is_shown_each_step(hooks: Hooks, hooked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = count_calls(monkeypatch, torch.optim.Optimizer, "_optimizer_step_code")
    for module in MODULES:
        optimizer = optimizer_of(module.Adam)
        if hooked:
            hooks.register(optimizer)
        optimizer.step()
        assert len(shown) == 1
        shown.clear()
        hooks.remove()


# Steps within steps.


def test_a_closure_that_steps_another_optimizer(hooks: Hooks) -> None:
    for make in (fusedoptim.Adam, calls_super(fusedoptim.Adam)):
        outer, inner = optimizer_of(make), optimizer_of(make)
        hooks.register(outer, ["pre", "post"])
        hooks.register(inner)
        outer.step(lambda o=inner: o.step(closure))
        expected = [("global pre", outer), ("pre", outer), *((kind, inner) for kind in KINDS)]
        assert [call[:2] for call in hooks.calls] == [*expected, ("post", outer), ("global post", outer)]
        hooks.kinds()
        hooks.remove()


def test_a_closure_that_steps_the_same_optimizer(hooks: Hooks) -> None:
    """It is a step that the user calls, with hooks of its own, as in torch."""
    kinds = []
    for module in MODULES:
        optimizer = optimizer_of(module.Adam)
        hooks.register(optimizer)
        optimizer.step(lambda o=optimizer: o.step(closure))
        assert steps_taken(optimizer) == [2]
        kinds.append(hooks.kinds())
        hooks.remove()
    optimizer = optimizer_of(calls_super(fusedoptim.Adam))
    hooks.register(optimizer)
    optimizer.step(lambda: optimizer.step(closure))
    assert kinds[0] == kinds[1] == hooks.kinds() == [*KINDS[:2], *KINDS, *KINDS[2:]]


def test_another_thread_steps_the_same_optimizer_meanwhile(hooks: Hooks) -> None:
    optimizer = optimizer_of(calls_super(fusedoptim.Adam))
    hooks.register(optimizer)

    def in_another_thread() -> None:
        other = threading.Thread(target=optimizer.step)
        other.start()
        other.join()

    optimizer.step(in_another_thread)
    assert hooks.kinds() == [*KINDS[:2], *KINDS, *KINDS[2:]]


def test_a_hook_that_steps_another_optimizer(hooks: Hooks) -> None:
    """As where gradients of other parameters are applied along the way."""
    outer, inner = optimizer_of(fusedoptim.Adam), optimizer_of(fusedoptim.Adam)
    hooks.handles.append(outer.register_step_post_hook(lambda *_: inner.step(closure)))
    hooks.register(inner, ["pre", "post"])
    outer.step()
    assert hooks.kinds() == ["pre", "post"]


def _fail() -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("make", [fusedoptim.Adam, calls_super(fusedoptim.Adam)], ids=["plain", "subclass"])
def test_after_a_step_that_raised(make: Any, hooks: Hooks) -> None:
    optimizer = optimizer_of(make)
    hooks.register(optimizer)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(_fail)
    assert hooks.kinds() == KINDS[:2]
    optimizer.param_groups[0]["lr"] = "x"
    with pytest.raises(TypeError):
        optimizer.step()
    assert hooks.kinds() == KINDS[:2]
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step(closure)
    assert hooks.ran_once(closure)
