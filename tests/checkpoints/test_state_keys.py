"""Keys of a state that miss their parameter are refused by name; a user's own entries go on, as with torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from helpers import make_params, params_of, set_grads
from torch import Tensor

import fusedoptim

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend", "one_thread")

State = dict[Any, Any]


def trained(name: str = "Adam", module: Any = fusedoptim) -> Any:
    optimizer = getattr(module, name)(make_params(), lr=0.1, **({"momentum": 0.9} if name == "SGD" else {}))
    set_grads(optimizer, 1)
    optimizer.step()
    return optimizer


def refusal(optimizer: Any, saved: Any) -> str:
    before = helpers.everything_of(optimizer)
    with pytest.raises(ValueError, match=r"Nothing was loaded$") as caught:
        optimizer.load_state_dict(saved)
    assert helpers.everything_of(optimizer) == before
    return str(caught.value)


@pytest.mark.parametrize("kind", [int, np.int64], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("count", [1, 2, 5, 6, 40])
def test_surplus_entries_are_named_and_counted(count: int, kind: Any) -> None:
    optimizer = trained()
    saved = optimizer.state_dict()
    saved["state"].update({kind(100 + i): {} for i in range(count)})
    text = refusal(optimizer, saved)
    assert "belong to no parameter, as no group of the file lists them: " in text
    assert [int(key) for key in re.findall(r"\b1\d\d\b", text)] == [100 + i for i in range(min(count, 5))]
    assert (f"and {count - 5} more ({count} in all)" in text) is (count > 5)
    assert "; remove these entries, or take the param_groups that were saved with them" in text
    for key in range(100, 100 + count):
        del saved["state"][key]
    optimizer.load_state_dict(saved)


def through_json(saved: State) -> State:
    """Tensors made lists, and tensors again, as people do it."""

    def plain(value: Any) -> Any:
        return value.tolist() if isinstance(value, Tensor) else value

    state = {key: {name: plain(x) for name, x in entry.items()} for key, entry in saved["state"].items()}
    read = json.loads(json.dumps({**saved, "state": state}))
    return {**read, "state": {k: {n: torch.tensor(x) for n, x in e.items()} for k, e in read["state"].items()}}


@helpers.of_names
def test_after_a_trip_through_json(name: str) -> None:
    optimizer = trained(name)
    saved = through_json(optimizer.state_dict())
    text = refusal(optimizer, saved)
    assert "has the keys '0', '1', '2', '3' (str) where the groups list 0, 1, 2, 3 (int), as after a trip" in text
    assert "make each of these keys int(key) in state_dict['state']" in text
    saved["state"] = {int(key): entry for key, entry in saved["state"].items()}  # as the message says
    saved["param_groups"][0]["lr"] = 0.25
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert len(optimizer.state) == len(params_of(optimizer))


def keyed(function: Callable[[Any], Any]) -> Callable[[State], Any]:
    return lambda saved: saved.update(state={function(key): entry for key, entry in saved["state"].items()})


def _listed_as_strings(saved: State) -> None:
    saved["param_groups"][0]["params"] = [str(key) for key in saved["param_groups"][0]["params"]]


def _one_string(saved: State) -> None:
    saved["state"]["2"] = saved["state"].pop(2)


def _flat(saved: State) -> None:
    saved["state"] = {f"{k}.{name}": x for k, entry in saved["state"].items() for name, x in entry.items()}


def _names_beside_empty_entries(saved: State) -> None:
    saved["state"] = {**{key: {} for key in saved["state"]}, **{f"p{k}": entry for k, entry in saved["state"].items()}}


AFRESH: dict[str, tuple[Callable[[State], Any], str]] = {
    "bytes": (keyed(lambda key: b"%d" % key), r"b'0', .* \(bytes\) where .* 0, .* \(int\).*int\(key\)"),
    "tensors": (keyed(torch.tensor), r"tensor\(0\), .* \(Tensor\) where .*int\(key\)"),
    "strings, NumPy's": (keyed(lambda key: np.str_(key)), r"\(str_\) where .*int\(key\)"),
    "groups list strings": (_listed_as_strings, r"keys 0, 1, 2, 3 \(int\) where the groups list '0', .*str\(key\)"),
    "one of them": (_one_string, r"has the keys '2' \(str\) where the groups list 2 \(int\)"),
    "names": (keyed(lambda key: f"layer{key}.weight"), "entries 'layer0.weight', .* none for the keys that the groups"),
    "names beside empty entries": (_names_beside_empty_entries, "entries 'p0', .* none for the keys"),
    "tuples": (keyed(lambda key: ("layer", key)), r"entries \('layer', 0\), .*all parameters would start afresh"),
    "flattened": (_flat, r"none for the keys that the groups list: .*; give each parameter's entry, a dict, the key"),
    "the parameters": (keyed(lambda key: torch.ones(3) * key), r"belong to no parameter.*tensor\("),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), AFRESH.values(), ids=AFRESH)
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_what_would_start_afresh_in_silence(name: str, change: Callable[[State], Any], words: str) -> None:
    """Torch loads each of these and keeps the entries under keys that no step asks for."""
    optimizer, theirs = trained(name), trained(name, torch.optim)
    saved = optimizer.state_dict()
    change(saved)
    assert re.search(words, refusal(optimizer, saved))
    theirs.load_state_dict(saved)
    assert any(not theirs.state[p] for p in params_of(theirs))


def test_the_state_of_another_librarys_sgd() -> None:
    """Of optimi; its options are torch's and more."""
    optimizer = trained("SGD")
    saved = optimizer.state_dict()
    for entry in saved["state"].values():
        entry["exp_avg"] = entry.pop("momentum_buffer")
    text = refusal(optimizer, saved)
    assert "['momentum_buffer'], for parameter 0" in text
    assert "convert_state_dict" in text


OWN: dict[str, State] = {
    "under strings": {"mine": {"a": 1}, "global_step": 7, "ema": torch.ones(3), "steps": {"step": 3}},
    "under others": {None: 1, ("a", 0): {"b": 2}, 2.5: [1], "": None},
    "a string beside its index": {"0": "what is known of the first parameter"},
}


@pytest.mark.parametrize("own", OWN.values(), ids=OWN)
@pytest.mark.parametrize("empty", [False, True])
@helpers.of_names
def test_a_users_own_entries_go_on(name: str, empty: bool, own: State) -> None:
    if empty:
        own = {key: value for key, value in own.items() if key != "0"}  # which may then be the index
    loaded = []
    for module in (fusedoptim, torch.optim):
        optimizer = trained(name, module)
        saved = optimizer.state_dict()
        saved["state"] = {**({} if empty else saved["state"]), **own}
        optimizer.load_state_dict(saved)
        loaded.append({key: value for key, value in optimizer.state.items() if not isinstance(key, Tensor)})
    assert loaded[0] == loaded[1] == own
    assert all(loaded[0][key] is value for key, value in own.items())


@pytest.mark.parametrize("kind", [np.int64, np.float64, float, bool], ids=lambda kind: kind.__name__)
def test_keys_that_equal_their_index_are_found(kind: Any) -> None:
    optimizer = fusedoptim.Adam(make_params([(3,), (4,)]))
    set_grads(optimizer, 1)
    optimizer.step()
    saved = optimizer.state_dict()
    keyed(kind)(saved)
    optimizer.load_state_dict(saved)
    assert len(optimizer.state) == 2
    assert all(optimizer.state[p] for p in params_of(optimizer))


def test_converting_says_the_same() -> None:
    saved = trained().state_dict()
    keyed(str)(saved)
    with pytest.raises(ValueError, match=r"state has the keys '0', .* where the groups list 0, .*int\(key\)"):
        fusedoptim.convert_state_dict(saved)
