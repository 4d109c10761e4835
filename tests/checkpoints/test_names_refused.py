"""What ``load_state_dict(match="name")`` refuses as ambiguous or damaged; nothing is loaded then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from helpers import params_of
from named import ALL, make, saved
from test_hostile_state import facts

import fusedoptim

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend", "one_thread")

DECAY: tuple[dict[str, Any], ...] = ({"weight_decay": 0.1}, {"weight_decay": 0.0})


def test_groups_that_were_joined_with_other_options_are_ambiguous() -> None:
    source = make((["body", "norm"], DECAY[0]), (["bias"], DECAY[1]), (["head"], DECAY[1]), steps=1)
    loaded = make((["bias", "norm", "head"], {}), (["body"], {}))
    loaded.load_state_dict(saved(source), match="name")  # the first group of the file is the second here
    loaded = make((["bias", "norm", "head", "body"], {}))
    before = facts(loaded)
    with pytest.raises(ValueError, match="Nothing was loaded") as caught:
        loaded.load_state_dict(saved(source), match="name")
    assert facts(loaded) == before
    assert str(caught.value) == (
        "optimizer.param_groups[0]: has 'norm' and 'bias', from the groups 0 and 1 of the file, whose 'weight_decay' "
        "differs: 0.1 (float) and 0.0 (float); make 'weight_decay' the same in both before loading, and set it on this "
        "optimizer after that. Nothing was loaded"
    )
    file = saved(source)
    for group in file["param_groups"]:
        group["weight_decay"] = 0.1
    loaded.load_state_dict(file, match="name")


@pytest.mark.parametrize(
    "groups",
    [
        [(["body", "bias"], DECAY[0]), (["norm", "head"], DECAY[1])],  # each has given one to the other
        [(["body"], DECAY[0]), (["head"], DECAY[1]), (["bias", "norm"], DECAY[1])],  # a third took one of each
    ],
)
def test_groups_whose_parameters_were_mixed_are_ambiguous(groups: Any) -> None:
    source = make((["body", "norm"], DECAY[0]), (["bias", "head"], DECAY[1]))
    with pytest.raises(ValueError, match=r"'weight_decay' differs: 0\.1"):
        make(*groups).load_state_dict(saved(source), match="name")


def test_the_last_of_three_groups_differs() -> None:
    source = make((["body"], DECAY[0]), (["bias"], DECAY[0]), (["head"], DECAY[1]))
    with pytest.raises(ValueError, match="has 'bias' and 'head', from the groups 1 and 2"):
        make((["head", "body", "bias"], {})).load_state_dict(saved(source), match="name")


LIKE: dict[str, tuple[Any, Any, bool]] = {
    "list and tuple": ([0.9, 0.99], (0.9, 0.99), True),
    "lists of tensors": ((torch.tensor(0.9), 0.99), (torch.tensor(0.9), 0.99), True),
    "other betas": ((0.9, 0.99), (0.9, 0.999), False),
}


@pytest.mark.parametrize(("one", "other", "alike"), LIKE.values(), ids=LIKE)
def test_what_counts_as_the_same_option(one: Any, other: Any, alike: bool) -> None:
    file = saved(make((ALL[:2], {}), (ALL[2:], {})))
    file["param_groups"][0]["betas"], file["param_groups"][1]["betas"] = one, other
    loaded = make((ALL, {}))
    if alike:
        loaded.load_state_dict(file, match="name")
        return
    with pytest.raises(ValueError, match="'betas' differs"):
        loaded.load_state_dict(file, match="name")


@pytest.mark.parametrize("value", [torch.tensor(0.1), torch.tensor([0.1]), "0.1", None, helpers], ids=repr)
def test_an_option_that_only_one_group_has_or_another_type_differs(value: Any) -> None:
    file = saved(make((ALL[:2], {}), (ALL[2:], {})))
    file["param_groups"][1]["mine"] = value
    with pytest.raises(ValueError, match="'mine' differs: absent and "):
        make((ALL, {})).load_state_dict(file, match="name")
    file["param_groups"][0]["mine"] = torch.tensor(0.1)
    if torch.is_tensor(value) and value.ndim == 0:
        make((ALL, {})).load_state_dict(file, match="name")
    else:
        with pytest.raises(ValueError, match="'mine' differs: a tensor of shape"):
            make((ALL, {})).load_state_dict(file, match="name")


def test_names_that_one_side_alone_has() -> None:
    few, many = (make((names, {})) for names in (ALL[1:], ALL))
    with pytest.raises(ValueError, match=r"^state_dict: lists 'body', which this optimizer has not; correct"):
        few.load_state_dict(saved(many), match="name")
    with pytest.raises(ValueError, match=r"^state_dict: does not list 'body', of this optimizer; correct"):
        many.load_state_dict(saved(few), match="name")


def test_a_state_of_another_shape_names_its_parameter() -> None:
    """By its name and place here, and by its key in the file."""
    file = saved(make((["head", "bias"], {}), steps=1))
    file["param_groups"][0]["param_names"] = ["bias", "head"]
    words = r"\['state'\]\[1\]\['exp_avg'\], for parameter 0 of group 0 \('head', shape \(5, 2\).* has shape \(7,\)"
    with pytest.raises(ValueError, match=words):
        make((["head"], {}), (["bias"], {})).load_state_dict(file, match="name")


def _groups(change: Callable[[dict[str, Any]], Any]) -> Callable[[Any, Any], Any]:
    return lambda optimizer, file: change(file["param_groups"][0])


REFUSED: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "no names in the file": (_groups(lambda g: g.pop("param_names")),
        r"state_dict\['param_groups'\]\[0\]: has no 'param_names'; put a list of them there, in the order of 'params'"),
    "no names here": (lambda o, file: o.param_groups[0].pop("param_names"),
        r"^optimizer.param_groups\[0\]: has no 'param_names'; make it with model.named_parameters\(\), or load by"),
    "a name twice": (_groups(lambda g: g["param_names"].__setitem__(1, "body")), "^state_dict.*: has 'body' twice"),
    "a name twice here": (lambda o, file: o.param_groups[0]["param_names"].__setitem__(1, "body"),
        r"^optimizer.param_groups\[0\]\['param_names'\]: has 'body' twice; give each parameter a name of its own"),
    "too few names": (_groups(lambda g: g["param_names"].pop()), r"\['param_names'\]: must have 5 names, got"),
    "names a string": (_groups(lambda g: g.update(param_names="abcde")), "must have 5 names, got 'abcde'"),
    "a name that is none": (_groups(lambda g: g["param_names"].__setitem__(0, [1])), r"must have strings, got \[1\]"),
    "one index twice": (_groups(lambda g: g["params"].__setitem__(1, 0)), r"has 0 \(int\) for parameter 1 .*'bias'"),
    "indices strings": (lambda o, file: file.update(state={str(k): v for k, v in file["state"].items()}),
        r"has the keys '0', .* where the groups list 0, .*int\(key\)"),
    "surplus": (lambda o, file: file["state"].update({7: {}}), "belong to no parameter.*: 7"),
    "a negative lr": (_groups(lambda g: g.update(lr=-1.0)), r"state_dict\['param_groups'\]\[0\]\['lr'\]: must be"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("strict", [True, False])
def test_what_is_ambiguous_or_damaged_is_refused(change: Callable[[Any, Any], Any], words: str, strict: bool) -> None:
    source, loaded = make((ALL, {}), steps=1), make((ALL, {}), steps=1)
    file = saved(source)
    change(loaded, file)
    before = facts(loaded)
    with pytest.raises(ValueError, match=words):
        loaded.load_state_dict(file, match="name", strict=strict)
    assert facts(loaded) == before


def test_index_says_that_names_would_match() -> None:
    file = saved(make((ALL, {})))
    unnamed = fusedoptim.Adam(params_of(make((ALL, {})))).state_dict()
    for groups in ([(ALL[:2], {}), (ALL[2:], {})], [(ALL[:2], {})]):
        with pytest.raises(ValueError, match='match the names that both have with match="name"'):
            make(*groups).load_state_dict(file)
        plain = fusedoptim.Adam([{"params": params_of(make(group))} for group in groups])
        for optimizer, other in ((plain, file), (make(*groups), unnamed)):
            with pytest.raises(ValueError, match=r"make the optimizer with the same (groups|parameters)\. Nothing"):
                optimizer.load_state_dict(other)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"match": "names"}, 'match must be "index" or "name", got \'names\''),
        ({"match": None}, 'match must be "index" or "name", got None'),
        ({"strict": False}, 'strict=False needs match="name"'),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], words: str) -> None:
    optimizer = make((ALL, {}))
    with pytest.raises(ValueError, match=words):
        optimizer.load_state_dict(saved(optimizer), **options)
