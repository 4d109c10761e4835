"""Hooks of steps, of saving and of loading: called as often and in the order of torch's.

Hooks know no hyper-parameters: one input of each class, on every path.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import params_of, randn
from torch.nn import Parameter
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch_inputs import OURS, Input, of_inputs

of_paths = of_inputs(*OURS, "foreach", "for-loop", "differentiable", only=lambda each: each.index == 0)


def make(each: Input) -> Any:
    """An optimizer of a parameter without a gradient, which a differentiable step cannot take."""
    return each.ours([Parameter(randn((2, 3), 1))])


def give_gradients(each: Input, optimizer: Any) -> None:
    for p in params_of(optimizer) if each.path.id != "differentiable" else ():
        p.grad = torch.ones_like(p)


def put_mark(optimizer: Any) -> None:
    optimizer.state["mark"] = 1


def take_mark(optimizer: Any, saved: dict[str, Any]) -> dict[str, Any]:
    saved["had mark"] = saved["state"].pop("mark", None) is not None
    return saved


@of_paths
def test_state_dict_pre_hook(each: Input) -> None:
    optimizer = make(each)
    optimizer.register_state_dict_pre_hook(put_mark)
    assert optimizer.state_dict()["state"]["mark"] == 1


@of_paths
def test_state_dict_post_hook(each: Input) -> None:
    optimizer = make(each)
    optimizer.register_state_dict_post_hook(take_mark)
    assert optimizer.state_dict()["had mark"] is False


@of_paths
def test_state_dict_pre_post_hook(each: Input) -> None:
    optimizer = make(each)
    optimizer.register_state_dict_pre_hook(put_mark)
    optimizer.register_state_dict_post_hook(take_mark)
    saved = optimizer.state_dict()
    assert saved["had mark"] is True
    assert "mark" not in saved["state"]


def set_lr(lr: float, replace: bool = False) -> Callable[..., Any]:
    """A hook that changes what is to be loaded, in place or by handing back another."""

    def hook(optimizer: Any, saved: dict[str, Any]) -> dict[str, Any] | None:
        changed = copy.deepcopy(saved) if replace else saved
        changed["param_groups"][0]["lr"] = lr
        return changed if replace else None

    return hook


@of_paths
def test_load_state_dict_pre_hook_and_prepend(each: Input) -> None:
    optimizer = make(each)
    saved = optimizer.state_dict()
    optimizer.register_load_state_dict_pre_hook(set_lr(0.002))
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.002
    optimizer.register_load_state_dict_pre_hook(set_lr(0.003, replace=True), prepend=True)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.002, "the first that was registered runs last"
    optimizer.register_load_state_dict_pre_hook(set_lr(0.004, replace=True))
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.004


@of_paths
@pytest.mark.parametrize("replaced", [False, True])
def test_load_state_dict_pre_post_hook(each: Input, replaced: bool) -> None:
    """The hook after loading sees what was loaded, once; torch's ``test_load_state_dict_post_hook`` too."""
    optimizer = make(each)
    seen: list[float] = []
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(o.param_groups[0]["lr"]))
    if replaced:
        optimizer.register_load_state_dict_pre_hook(set_lr(0.003, replace=True))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == [0.003 if replaced else 0.001]


@of_paths
@pytest.mark.parametrize("kind", ["pre", "post"])
def test_step_hook(each: Input, kind: str) -> None:
    """``test_step_pre_hook`` and ``test_step_post_hook``; with gradients as well, which torch's have not."""
    optimizer = make(each)
    calls: list[Any] = []
    handle = getattr(optimizer, f"register_step_{kind}_hook")(lambda *args: calls.append(args))
    for step in range(2):
        optimizer.step()
        give_gradients(each, optimizer)
        assert len(calls) == step + 1
    assert all(call == (optimizer, (optimizer,), {}) for call in calls)
    handle.remove()
    optimizer.step()
    assert len(calls) == 2


@of_paths
def test_step_all_hooks(each: Input) -> None:
    """Those of all optimizers around those of one, for one of ours beside one of torch's."""
    optimizers = [make(each), torch.optim.SGD([Parameter(torch.ones(2))])]
    called: list[str] = []

    def note(what: str) -> Callable[..., None]:
        return lambda *args: called.append(what)

    handles = [
        register_optimizer_step_pre_hook(note("all before")),
        register_optimizer_step_post_hook(note("all after")),
    ]
    try:
        for optimizer in optimizers:
            handles.append(optimizer.register_step_pre_hook(note("before")))
            handles.append(optimizer.register_step_post_hook(note("after")))
        order = ["all before", "before", "after", "all after"]
        for count, optimizer in enumerate([*optimizers, optimizers[0]], start=1):
            give_gradients(each, optimizers[0])
            optimizer.step()
            assert called == order * count
    finally:
        for handle in handles:
            handle.remove()
    for optimizer in optimizers:
        optimizer.step()
    assert called == order * 3
