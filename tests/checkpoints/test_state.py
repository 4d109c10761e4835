"""The state in checkpoints and copies: torch's own format, in both directions, and training goes on identically."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from helpers import (
    Twins,
    assert_optimizers_match,
    make_params,
    of_all_names,
    of_names,
    of_settings,
    params_of,
    set_grads,
)
from torch import Tensor

import fusedoptim

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend")

FLAGS: list[dict[str, Any]] = [{}, {"fused": True}, {"fused": False}, {"foreach": True}]


def shape_of(x: Any) -> Any:
    """The form of a state dict: everything but the numbers in tensors."""
    if isinstance(x, Tensor):
        return x.dtype, x.shape, x.stride(), x.device, x.requires_grad
    if isinstance(x, dict):
        return {key: shape_of(value) for key, value in x.items()}
    return [shape_of(item) for item in x] if isinstance(x, list) else x


@of_settings
@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_state_dict_has_the_form_of_torchs(
    name: str, options: dict[str, Any], flags: dict[str, Any], dtype: torch.dtype
) -> None:
    def params() -> list[Any]:
        return [
            *make_params(dtype=dtype),
            torch.nn.Parameter(torch.ones(2, 3, 4, 5, dtype=dtype).to(memory_format=torch.channels_last)),
        ]

    twins = Twins(name, {**options, **flags}, params, theirs={})
    for optimizer in twins:
        set_grads(optimizer, 1)
        params_of(optimizer)[1].grad = None
        optimizer.step()
    ours, theirs = (optimizer.state_dict() for optimizer in twins)
    if name == "SGD":  # torch's buffer has the layout of the gradient, ours that of the parameter
        for state in (*ours["state"].values(), *theirs["state"].values()):
            state.update({key: value.contiguous() for key, value in state.items() if value is not None})
    assert shape_of(ours) == shape_of(theirs)
    assert list(ours["state"]) == list(theirs["state"])


def test_step_counts_in_double_where_that_is_the_default() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        twins = Twins("Adam", {}, lambda: make_params(dtype=torch.float64))
        twins.step(2)
        assert twins.ours.state[params_of(twins.ours)[0]]["step"].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@of_settings
@pytest.mark.parametrize("saved", FLAGS, ids=str)
@pytest.mark.parametrize("loading", FLAGS, ids=str)
def test_checkpoints_in_both_directions(
    name: str, options: dict[str, Any], saved: dict[str, Any], loading: dict[str, Any]
) -> None:
    modules = (fusedoptim, torch.optim)
    for source, target in (modules, modules[::-1], (fusedoptim, fusedoptim)):
        first = getattr(source, name)(make_params(), **options, **saved)
        for seed in (1, 2):
            set_grads(first, seed)
            first.step()
        second = getattr(target, name)(
            [p.detach().clone().requires_grad_() for p in params_of(first)], lr=9.0, **loading
        )
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        assert second.param_groups[0]["lr"] == options["lr"]
        if target is fusedoptim:
            kept = {key: second.param_groups[0][key] for key in ("fused", "foreach")}
            assert kept == {"fused": None, "foreach": None, **loading}
        for seed in (3, 4):
            for optimizer in (first, second):
                set_grads(optimizer, seed)
                optimizer.step()
        assert_optimizers_match(second, first, exact=False)


def _saved(optimizer: Any, weights_only: bool) -> Any:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = type(optimizer)([p.detach().clone().requires_grad_() for p in params_of(optimizer)])
    other.load_state_dict(torch.load(file, weights_only=weights_only))
    return other


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
    "weights only": lambda optimizer: _saved(optimizer, True),
    "save and load": lambda optimizer: _saved(optimizer, False),
}


@of_settings
@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
def test_a_copy_goes_on_identically(name: str, options: dict[str, Any], make_copy: Callable[[Any], Any]) -> None:
    optimizer = getattr(fusedoptim, name)(make_params(), **options)
    for seed in (1, 2):
        set_grads(optimizer, seed)
        optimizer.step()
    other = make_copy(optimizer)
    assert type(other) is type(optimizer)
    assert repr(other) == repr(optimizer)
    for seed in (3, 4):
        for each in (optimizer, other):
            set_grads(each, seed)
            each.step()
        assert_optimizers_match(other, optimizer, exact=True)
    assert not {id(p) for p in params_of(other)} & {id(p) for p in params_of(optimizer)}


@of_names
@pytest.mark.parametrize("fused", [None, False, True])
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_keep_the_flag_for_grad_scaler(name: str, fused: bool | None, way: str) -> None:
    optimizer = getattr(fusedoptim, name)(make_params(), fused=fused)
    assert bool(getattr(COPIES[way](optimizer), "_step_supports_amp_scaling", False)) is bool(fused)


@of_all_names
def test_old_checkpoints(name: str) -> None:
    """Of torch before 1.13: no newer flags in the groups, and ``step`` is a number."""
    twins = Twins(name, {"momentum": 0.9} if name == "SGD" else {})
    twins.step(2)
    for optimizer in twins:
        saved = copy.deepcopy(optimizer.state_dict())
        for group in saved["param_groups"]:
            for key in ("foreach", "fused", "maximize", "differentiable", "capturable", "decoupled_weight_decay"):
                group.pop(key, None)
        for state in saved["state"].values():
            state.update({"step": int(state["step"])} if "step" in state else {})
        optimizer.load_state_dict(saved)
    twins.theirs.param_groups[0].update(fused=False, foreach=False)
    twins.step(2)


def test_hooks_and_names_of_state_dicts() -> None:
    called: list[str] = []
    named = [(f"p{i}", p) for i, p in enumerate(make_params())]
    optimizer = fusedoptim.Adam(named)
    optimizer.register_state_dict_pre_hook(lambda o: called.append("pre"))
    optimizer.register_state_dict_post_hook(lambda o, d: called.append("post"))
    optimizer.register_load_state_dict_pre_hook(lambda o, d: called.append("load pre"))
    optimizer.register_load_state_dict_post_hook(lambda o: called.append("load post"))
    set_grads(optimizer, 1)
    optimizer.step()
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["param_names"] == ["p0", "p1", "p2", "p3"]
    optimizer.load_state_dict(saved)
    assert called == ["pre", "post", "load pre", "load post"]


def test_another_number_of_groups_raises_as_in_torch() -> None:
    optimizer = fusedoptim.SGD(make_params(), fused=True)
    saved = optimizer.state_dict()
    optimizer.add_param_group({"params": make_params()})
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(saved)
    assert optimizer._step_supports_amp_scaling
