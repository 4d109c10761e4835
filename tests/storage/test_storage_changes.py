"""Settings that change: in a group, in a new group, and from the groups of a file."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from storages import BF16, F16, F32, Storage, assert_same, state_of

import fusedoptim

PATHS = ["native", "reference"]


def trained(settings: dict[str, Any], param: torch.dtype = BF16, **options: Any) -> tuple[Storage, list[Any], Any]:
    storage = Storage("AdamW", param, param, settings)
    params = storage.params()
    for x in params:
        x.data.add_(0.0)  # a new master, 0, counts as that of -0
    optimizer = storage.make(params, **options)
    go_on(storage, params, optimizer, 2)
    return storage, params, optimizer


def go_on(storage: Storage, params: list[Any], optimizer: Any, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        storage.set_grads(params, step)
        optimizer.step()


def dtypes_of(optimizer: Any) -> dict[str, torch.dtype]:
    return {name: x.dtype for name, x in state_of(optimizer)[0].items()}


@pytest.mark.parametrize(("before", "after"), [(True, "remainder"), ("remainder", True)])
def test_a_master_and_a_remainder_become_each_other_by_loading(before: Any, after: Any) -> None:
    """To the same numbers: the training goes on as if it had had the other one from the start."""
    storage, params, optimizer = trained({"master_weights": before})
    _, others, other = trained({"master_weights": after})
    optimizer.param_groups[0]["master_weights"] = after
    optimizer.load_state_dict(optimizer.state_dict())
    assert_same(state_of(optimizer), state_of(other))
    go_on(storage, params, optimizer, 2, 5)
    go_on(storage, others, other, 2, 5)
    assert_same(state_of(optimizer), state_of(other))


def test_a_compensation_of_another_dtype_begins_afresh() -> None:
    _, _, optimizer = trained({"kahan_sum": True})
    storage = Storage("AdamW", F16, F16)
    params = storage.params()
    other = storage.make(params)
    other.load_state_dict(optimizer.state_dict())
    go_on(storage, params, other, 1)
    assert dtypes_of(other)["kahan_comp"] == F16


def test_state_takes_another_storage_by_loading() -> None:
    """The setting alone is for new state."""
    storage, params, optimizer = trained({}, F32)
    optimizer.param_groups[0]["state_dtype"] = "8bit"
    go_on(storage, params, optimizer, 1)
    assert dtypes_of(optimizer)["exp_avg"] == F32
    optimizer.load_state_dict(optimizer.state_dict())
    assert dtypes_of(optimizer)["exp_avg"] == torch.uint8
    go_on(storage, params, optimizer, 1)


def test_of_settings_that_exclude_each_other_the_file_has_chosen() -> None:
    _, _, optimizer = trained({"master_weights": True})
    storage = Storage("AdamW", BF16, BF16, {"kahan_sum": True})
    params = storage.params()
    other = storage.make(params)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["master_weights"] is True
    assert "kahan_sum" not in other.param_groups[0]
    go_on(storage, params, other, 1)


@pytest.mark.parametrize(
    ("settings", "param", "change", "message"),
    [
        ({"master_weights": True}, BF16, {"kahan_sum": True}, "master_weights and kahan_sum exclude.*group 0"),
        ({"state_dtype": BF16}, BF16, {"state_dtype": {"moment": BF16}}, "must name states of.*'moment'.*group 0"),
        ({"master_weights": "remainder"}, F16, {}, "for bfloat16 parameters only.*parameter 0 of group 0"),
        ({"state_dtype": "8bit"}, torch.float64, {}, "state_dtype must be None for float64.*parameter 0 of group 0"),
    ],
)  # fmt: skip
def test_a_storage_that_cannot_be_is_not_loaded(
    settings: dict[str, Any], param: torch.dtype, change: dict[str, Any], message: str
) -> None:
    saved = trained(settings)[2].state_dict()
    saved["param_groups"][0].update(change)
    _, _, optimizer = trained({}, param)
    before = state_of(optimizer)
    with pytest.raises(ValueError, match=f"{message}.*Nothing was loaded"):
        optimizer.load_state_dict(saved)
    assert "state_dtype" not in optimizer.param_groups[0]
    assert_same(state_of(optimizer), before)


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_scale", "master_param"])
@pytest.mark.parametrize(("what", "message"), [("meta", "meta"), ("sparse", "layout torch.sparse_coo")])
def test_what_has_no_numbers_in_memory_is_not_loaded(name: str, what: str, message: str) -> None:
    _, _, optimizer = trained({"master_weights": True, "state_dtype": "8bit"})
    saved = copy.deepcopy(optimizer.state_dict())
    entry = saved["state"][0]
    entry[name] = entry[name].to("meta") if what == "meta" else entry[name].to_sparse()
    with pytest.raises(ValueError, match=f"'{name}'.*{message}.*Nothing was loaded"):
        optimizer.load_state_dict(saved)


def test_scales_are_loaded_in_any_layout() -> None:
    storage, params, optimizer = trained({"state_dtype": "8bit"})
    _, others, other = trained({"state_dtype": "8bit"})
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["exp_avg_scale"] = saved["state"][0]["exp_avg_scale"].repeat(1, 2)[:, ::2]
    optimizer.load_state_dict(saved)
    go_on(storage, params, optimizer, 1, 5)
    go_on(storage, others, other, 1, 5)
    assert_same(state_of(optimizer), state_of(other))


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"kahan_sum": True}, "master_weights and kahan_sum exclude each other.*parameter group 1: set one to False"),
        ({"state_dtype": "4bit"}, "state_dtype must be.*got '4bit' in parameter group 1"),
        ({"state_dtype": {"moment": BF16}}, "state_dtype must name states of.*'moment' in parameter group 1"),
        ({"dtype": torch.float64, "state_dtype": BF16}, "must be None for float64.*parameter 0 of group 1"),
        ({"dtype": F16, "master_weights": "remainder"}, "for bfloat16 parameters only.*parameter 0 of group 1"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be.*got -1.0 in parameter group 1"),
    ],
)  # fmt: skip
def test_a_group_that_cannot_be_is_not_added(group: dict[str, Any], message: str) -> None:
    storage, params, optimizer = trained({"master_weights": True})
    param = torch.nn.Parameter(torch.ones(3, dtype=group.pop("dtype", BF16)))
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [param], **group})
    assert len(optimizer.param_groups) == 1
    go_on(storage, params, optimizer, 1)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("state", ["new", "there"])
@pytest.mark.parametrize(
    "change",
    [
        {"state_dtype": "4bit"}, {"state_dtype": torch.float64}, {"state_dtype": {"exp_avg": "4bit"}},
        {"master_weights": "rest"}, {"master_weights": 1}, {"kahan_sum": 1}, {"stochastic_rounding": "yes"},
        {"seed": -1}, {"seed": 1.0}, {"seed": True}, {"seed": 2**64 - 1}, {"stochastic_rounding": True},
        {"master_weights": True},
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_of_a_group_is_checked_by_the_step(path: str, state: str, change: dict[str, Any]) -> None:
    storage, params, optimizer = trained({"kahan_sum": True})
    if state == "new":
        optimizer.state.clear()
    optimizer.param_groups[0].update(change)
    before = [param.detach().clone() for param in params]
    storage.set_grads(params, 3)
    with fusedoptim.set_backend(path), pytest.raises(ValueError, match=f"{next(iter(change))}|exclude.*group 0"):
        optimizer.step()
    assert all(torch.equal(param, old) for param, old in zip(params, before, strict=True))


def test_a_parameter_that_only_torch_can_step_is_named() -> None:
    params = [torch.nn.Parameter(torch.ones(3, dtype=x)) for x in (BF16, torch.complex64)]
    optimizer = fusedoptim.AdamW(params, master_weights=True)
    for param in params:
        param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match=r"master_weights=True of parameter group 0.*parameter 1 of group 0"):
        optimizer.step()
    assert params[0].eq(1).all()


@pytest.mark.parametrize("path", PATHS)
def test_a_scale_that_is_no_tensor_is_told(path: str) -> None:
    storage, params, optimizer = trained({"state_dtype": "8bit"})
    optimizer.state[params[0]]["exp_avg_scale"] = 3
    with fusedoptim.set_backend(path), pytest.raises(RuntimeError, match=r"state_dtype='8bit'.*parameter 0 of group 0"):
        go_on(storage, params, optimizer, 1)
