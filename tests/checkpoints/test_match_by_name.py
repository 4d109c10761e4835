"""``load_state_dict(match="name")``: state and options go by the names of parameters, wherever they now stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import helpers
import pytest
import torch
from helpers import assert_optimizers_match
from named import ALL, KINDS, Group, make, named, saved, step
from test_hostile_state import facts
from torch.nn import Parameter
from torch.optim.lr_scheduler import ExponentialLR

import fusedoptim

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend", "one_thread")

of_kinds = pytest.mark.parametrize("name", KINDS)


def assert_goes_on_as(loaded: Any, source: Any, names: Sequence[str] = ALL) -> None:
    """The state of each name is the source's, and training goes on to the same numbers."""
    mine, theirs = named(loaded), named(source)
    with torch.no_grad():
        for n in names:
            mine[n].copy_(theirs[n])
    for seed in (8, 9):
        for n in names:
            for key, value in source.state[theirs[n]].items():
                assert torch.equal(loaded.state[mine[n]][key], value), (n, key)
            assert set(loaded.state[mine[n]]) == set(source.state[theirs[n]])
        step(loaded, seed)
        step(source, seed)
        for n in names:
            assert torch.equal(mine[n], theirs[n]), n


@of_kinds
@pytest.mark.parametrize("module", [fusedoptim, torch.optim], ids=["ours", "torch"])
def test_the_same_parameters_as_by_index(module: Any, name: str) -> None:
    source = make((ALL[:3], {}), (ALL[3:], {"weight_decay": 0.1}), name=name, module=module, steps=2)
    pair = []
    for match in ("index", "name"):
        loaded = make((ALL[:3], {"lr": 9.0}), (ALL[3:], {}), name=name)
        result = loaded.load_state_dict(saved(source), match=match)
        assert result == (None if match == "index" else ([], []))
        pair.append(loaded)
    groups = [[{**group, "params": None} for group in o.param_groups] for o in pair]
    assert groups[0] == groups[1]
    step(pair[0], 5), step(pair[1], 5)
    assert_optimizers_match(*pair, exact=True)


@of_kinds
def test_another_order(name: str) -> None:
    source = make((ALL, {}), name=name, steps=2)
    loaded = make((ALL[::-1], {"lr": 9.0}), name=name)
    assert loaded.load_state_dict(saved(source), match="name") == ([], [])
    assert_goes_on_as(loaded, source)


def test_a_group_has_the_options_of_its_names_wherever_it_stands() -> None:
    source = make((ALL[:2], {"lr": 0.5}), (ALL[2:], {"weight_decay": 0.1, "mine": "head"}), steps=2)
    loaded = make((ALL[:1:-1], {"lr": 9.0, "fused": True}), (ALL[:2], {"lr": 9.0}))
    loaded.load_state_dict(saved(source), match="name")
    first, second = loaded.param_groups
    assert (first["lr"], first["weight_decay"], first["mine"], first["fused"]) == (0.1, 0.1, "head", True)
    assert (second["lr"], second["weight_decay"], second["fused"]) == (0.5, 0, None)
    assert [group["param_names"] for group in loaded.param_groups] == [list(ALL[:1:-1]), list(ALL[:2])]
    assert_goes_on_as(loaded, source)


def test_a_parameter_that_moved_has_the_options_of_the_group_it_is_in() -> None:
    source = make((["body", "norm"], {"weight_decay": 0.1}), (["bias"], {"lr": 0.2}), steps=2)
    for group in source.param_groups:
        group["lr"] *= 0.5
    loaded = make((["norm", "bias"], {"lr": 9.0}), (["body"], {"weight_decay": 0.3}))
    loaded.load_state_dict(saved(source), match="name")
    assert [(group["lr"], group["weight_decay"]) for group in loaded.param_groups] == [(0.1, 0), (0.05, 0.1)]
    assert loaded.state[named(loaded)["norm"]]["step"] == 2


@pytest.mark.parametrize("split", [True, False])
def test_groups_that_were_split_or_joined(split: bool) -> None:
    """With a scheduler, whose entry in the group comes along."""
    one: list[Group] = [(ALL, {"weight_decay": 0.1})]
    two: list[Group] = [(ALL[3:], {"weight_decay": 0.1}), (ALL[:3], {"weight_decay": 0.1, "fused": True})]
    source = make(*(one if split else two), steps=1)
    scheduler = ExponentialLR(source, 0.5)
    step(source, 4)
    scheduler.step()
    loaded = make(*(two if split else one), lr=9.0)
    loaded.load_state_dict(saved(source), match="name")
    assert {(group["lr"], group["initial_lr"]) for group in loaded.param_groups} == {(0.05, 0.1)}
    assert_goes_on_as(loaded, source)
    scheduler = ExponentialLR(loaded, 0.5, last_epoch=1)
    loaded.step()
    scheduler.step()
    assert {group["lr"] for group in loaded.param_groups} == {0.025}


@of_kinds
@pytest.mark.parametrize("module", [fusedoptim, torch.optim], ids=["ours", "torch"])
def test_added_and_removed_parameters(module: Any, name: str) -> None:
    source = make((["body", "bias", "head"], {}), name=name, module=module, steps=2)
    file = saved(source)
    file["state"]["mine"] = "kept"
    loaded = make((["scale", "head", "body"], {"lr": 9.0}), (["norm"], {"lr": 0.7}), name=name)
    before = facts(loaded)
    with pytest.raises(ValueError, match="Nothing was loaded") as caught:
        loaded.load_state_dict(file, match="name")
    assert str(caught.value) == (
        "state_dict: does not list 'scale', 'norm', of this optimizer and lists 'bias', which this optimizer has not; "
        "correct 'param_names' in its groups, or load what matches with strict=False. Nothing was loaded"
    )
    assert facts(loaded) == before
    result = loaded.load_state_dict(file, match="name", strict=False)
    assert result.missing_keys == ["scale", "norm"]
    assert result.unexpected_keys == ["bias"]
    params = named(loaded)
    assert set(loaded.state) == {params["body"], params["head"], "mine"}
    assert [group["lr"] for group in loaded.param_groups] == [0.1, 0.7]  # that of its names, and its own
    if module is fusedoptim:
        assert_goes_on_as(loaded, source, ["body", "head"])
    else:
        step(loaded, 3)
    assert len(loaded.state[params["scale"]]) == len(loaded.state[params["body"]])


def test_what_is_left_out_is_not_looked_at_and_the_rest_is() -> None:
    file = saved(make((ALL, {}), steps=1))
    file["state"][0] = "damaged"
    loaded = make((ALL[1:], {}))
    loaded.load_state_dict(file, match="name", strict=False)
    with pytest.raises(ValueError, match=r"\['state'\]\[0\], for parameter 4 of group 0 \('body'"):
        make((ALL[::-1], {})).load_state_dict(file, match="name")


def test_a_key_under_two_names_stays_where_one_of_them_is_left_out() -> None:
    """So a parameter is saved that was listed twice."""
    file = saved(make((["body"], {}), steps=1))
    file["param_groups"][0].update(params=[0, 0], param_names=["tied", "body"])
    loaded = make((["body"], {}))
    assert loaded.load_state_dict(file, match="name", strict=False) == ([], ["tied"])
    assert loaded.state[named(loaded)["body"]]["step"] == 1


def test_a_group_without_parameters_needs_no_names() -> None:
    source, loaded = (fusedoptim.Adam([{"params": []}], lr=lr) for lr in (0.1, 9.0))
    assert loaded.load_state_dict(saved(source), match="name") == ([], [])
    assert loaded.param_groups[0]["lr"] == 9.0


def test_nothing_in_common_keeps_everything() -> None:
    loaded = make((["body"], {"lr": 0.3}))
    result = loaded.load_state_dict(saved(make((["head"], {}), steps=1)), match="name", strict=False)
    assert result == (["body"], ["head"])
    assert loaded.param_groups[0]["lr"] == 0.3
    assert not loaded.state


def test_a_parameter_without_state_has_none_after_and_is_not_missing() -> None:
    source = make((ALL, {}))
    assert make((ALL[::-1], {})).load_state_dict(saved(source), match="name") == ([], [])
    source = make((ALL, {}), steps=1)
    del source.state[named(source)["head"]]
    loaded = make((ALL[::-1], {}), steps=1)
    loaded.load_state_dict(saved(source), match="name")
    assert named(loaded)["head"] not in loaded.state
    assert len(loaded.state) == 4


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_a_prefix_is_named_and_a_hook_can_strip_it(prefix: str) -> None:
    source = make((ALL, {}), steps=1)
    file = saved(source)
    file["param_groups"][0]["param_names"] = [prefix + n for n in ALL]
    loaded = make((ALL[::-1], {}))
    with pytest.raises(ValueError, match=f"; the names differ by the prefix '{prefix}': correct 'param_names'"):
        loaded.load_state_dict(file, match="name")
    wrapped = make((ALL, {}))
    wrapped.param_groups[0]["param_names"] = [prefix + n for n in ALL]
    with pytest.raises(ValueError, match=f"; the names differ by the prefix '{prefix}': correct 'param_names'"):
        wrapped.load_state_dict(saved(source), match="name")
    called = []

    def strip(optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        called.append("pre")
        groups = [
            {**group, "param_names": [n.removeprefix(prefix) for n in group["param_names"]]}
            for group in state_dict["param_groups"]
        ]
        return {**state_dict, "param_groups": groups}

    loaded.register_load_state_dict_pre_hook(strip)
    loaded.register_load_state_dict_post_hook(lambda optimizer: called.append(f"post {len(optimizer.state)}"))
    loaded.load_state_dict(file, match="name")
    assert called == ["pre", "post 5"]
    assert_goes_on_as(loaded, source)


def test_a_subclass_that_knows_only_the_dict() -> None:
    class Mine(fusedoptim.AdamW):
        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict(state_dict, match="name")

    source = make((ALL, {}), name="AdamW", steps=1)
    loaded = Mine([(n, p.detach().clone().requires_grad_()) for n, p in reversed(named(source).items())])
    loaded.load_state_dict(saved(source))
    assert_goes_on_as(loaded, source)


def test_a_large_optimizer_is_compared_in_linear_time() -> None:
    """Names are looked up, not searched for."""

    class Name(str):
        compared = 0

        def __eq__(self, other: object) -> bool:
            Name.compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    params = [(Name(f"p{i}"), Parameter(torch.ones(1))) for i in range(300)]
    source, loaded = fusedoptim.SGD(params), fusedoptim.SGD(params[::-1])
    file = source.state_dict()
    file["param_groups"][0]["param_names"] = [Name(f"p{i}") for i in range(300)]
    Name.compared = 0
    loaded.load_state_dict(file, match="name")
    assert 0 < Name.compared < 20 * 300
