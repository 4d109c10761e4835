"""Hooks around state_dict and load_state_dict: called when and with what torch calls them; side by side."""

from __future__ import annotations

import copy
from typing import Any

import helpers
import pytest
import torch
from helpers import make_params, params_of, set_grads

import fusedoptim

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend", "one_thread")


def pair(**options: Any) -> list[Any]:
    made = [module.Adam(make_params(), **options) for module in (fusedoptim, torch.optim)]
    for optimizer in made:
        set_grads(optimizer, 1)
        optimizer.step()
    return made


def test_order_and_arguments() -> None:
    logs = []
    for optimizer in pair():
        log: list[Any] = []

        def note(text: str, log: list[Any] = log) -> Any:
            return lambda *args: log.append(
                (text, [sorted(a) if isinstance(a, dict) else type(a).__name__ for a in args])
            )

        for prepend in (False, True, False):
            optimizer.register_state_dict_pre_hook(note(f"pre {prepend} {len(log)}"), prepend=prepend)
            optimizer.register_state_dict_post_hook(note(f"post {prepend}"), prepend=prepend)
            optimizer.register_load_state_dict_pre_hook(note(f"load pre {prepend}"), prepend=prepend)
            optimizer.register_load_state_dict_post_hook(note(f"load post {prepend}"), prepend=prepend)
        optimizer.load_state_dict(optimizer.state_dict())
        logs.append(log)
    assert logs[0] == logs[1]
    assert len(logs[0]) == 12


def test_a_pre_hook_may_change_the_dict_or_return_another() -> None:
    for optimizer in pair():
        saved = optimizer.state_dict()
        kept = copy.deepcopy(saved)

        def change(o: Any, state_dict: dict[str, Any]) -> None:
            state_dict["param_groups"] = [{**group, "lr": 0.25} for group in state_dict["param_groups"]]

        def replace(o: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
            assert state_dict["param_groups"][0]["lr"] == 0.25
            return {**state_dict, "param_groups": [{**group, "eps": 0.5} for group in state_dict["param_groups"]]}

        optimizer.register_load_state_dict_pre_hook(change)
        optimizer.register_load_state_dict_pre_hook(replace)
        optimizer.load_state_dict(saved)
        assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["eps"]) == (0.25, 0.5)
        assert saved["param_groups"] == kept["param_groups"]  # the copy that hooks get is one of the outer dict


def test_a_hook_may_mend_what_would_be_refused() -> None:
    """As a file saved under other names is: with a pre-hook that gives the state its shapes back."""
    optimizer = pair()[0]
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["exp_avg"] = saved["state"][0]["exp_avg"].flatten()
    with pytest.raises(ValueError, match="exp_avg"):
        optimizer.load_state_dict(saved)

    def mend(o: Any, state_dict: dict[str, Any]) -> None:
        entry = state_dict["state"][0]
        entry["exp_avg"] = entry["exp_avg"].view_as(entry["exp_avg_sq"])

    optimizer.register_load_state_dict_pre_hook(mend)
    optimizer.load_state_dict(saved)


def test_a_hook_may_remove_itself() -> None:
    for optimizer in pair():
        called: list[str] = []
        for register in (optimizer.register_load_state_dict_pre_hook, optimizer.register_load_state_dict_post_hook):
            handles: list[Any] = []

            def once(*args: Any, handles: list[Any] = handles, called: list[str] = called) -> None:
                called.append("once")
                handles[0].remove()

            handles.append(register(once))
        for _ in range(2):
            optimizer.load_state_dict(optimizer.state_dict())
        assert called == ["once", "once"]


def test_a_post_hook_sees_the_loaded_optimizer_and_may_load_again() -> None:
    optimizer = pair(fused=True)[0]
    saved = pair()[1].state_dict()  # with fused=None
    seen = []

    def look(o: Any) -> None:
        seen.append((o.param_groups[0]["fused"], o._step_supports_amp_scaling, len(o.state)))
        if len(seen) == 1:
            o.load_state_dict(saved)

    optimizer.register_load_state_dict_post_hook(look)
    optimizer.load_state_dict(saved)
    assert seen == [(True, True, len(params_of(optimizer)))] * 2


def test_the_caller_of_a_subclass_is_obeyed() -> None:
    class Mine(fusedoptim.Adam):
        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict(
                {**state_dict, "param_groups": [{**g, "lr": 3.0} for g in state_dict["param_groups"]]}
            )

    optimizer = Mine(make_params())
    optimizer.load_state_dict(state_dict=optimizer.state_dict())  # by keyword, as torch.distributed.checkpoint calls it
    assert optimizer.param_groups[0]["lr"] == 3.0
