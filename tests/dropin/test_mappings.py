"""State, groups and lists of parameters may be objects with a behaviour of their own: it has its effect.

Values that are loaded when asked for, scheduled or kept elsewhere: read past the object, they are other numbers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from helpers import assert_tensors_match, make_params, params_of, randn
from odd_mappings import CHANGES, Change, Forgetful
from outcomes import OPTIONS
from torch.nn import Parameter

import fusedoptim
from fusedoptim.torch_internals.mappings import is_transparent

path = helpers.path
pytestmark = pytest.mark.usefixtures("path", "one_thread")

MODULES: list[Any] = [fusedoptim, torch.optim]


def set_grads_of(params: list[Parameter], seed: int) -> None:
    for i, p in enumerate(params):
        p.grad = randn(p.shape, 100 * seed + i)


def step_and_zero(optimizer: Any, zero_grad: str) -> None:
    if isinstance(optimizer, fusedoptim.step.FusedStep):
        optimizer.step(zero_grad=zero_grad)
    else:
        optimizer.step()
        optimizer.zero_grad(set_to_none=zero_grad == "to_none")


CALLS: dict[str, Callable[[Any], Any]] = {
    "step": lambda o: o.step(),
    "step to_zero": lambda o: step_and_zero(o, "to_zero"),
    "step to_none": lambda o: step_and_zero(o, "to_none"),
    "zero_grad to zero": lambda o: o.zero_grad(set_to_none=False),
    "zero_grad to None": lambda o: o.zero_grad(),
}


def entries(mapping: Any) -> dict[Any, Any]:
    """What lies in a mapping, past what it says of itself."""
    if isinstance(mapping, dict):
        return dict(dict.items(mapping))
    return {} if mapping is None or isinstance(mapping, list) else dict(mapping.items())


def trial(module: Any, name: str, change: Change, steps_before: int, call: str) -> Any:
    """What a call leaves: parameters, gradients and state; or that it raised."""
    parameters = make_params([(4, 33), (), (7,)])
    others = make_params([(2, 3), (5,)])
    optimizer = getattr(module, name)([{"params": parameters}, {"params": others, "lr": 0.07}], **OPTIONS[name])
    parameters, others = (list(group["params"]) for group in optimizer.param_groups)
    everything = [*parameters, *others]
    for seed in range(steps_before):
        set_grads_of(everything, seed)
        optimizer.step()
    change(optimizer, parameters)
    for seed in (11, 12):
        set_grads_of(everything, seed)
        try:
            CALLS[call](optimizer)
        except Exception as error:
            return error
    state = entries(optimizer.state)
    return [
        {"parameter": p, "gradient": p.grad, **{k: v for k, v in entries(state.get(p)).items() if v is not None}}
        for p in everything
    ]


def assert_trials_match(name: str, *args: Any) -> None:
    ours, theirs = (trial(module, name, *args) for module in MODULES)
    if isinstance(theirs, Exception):
        assert isinstance(ours, Exception)
        return
    assert not isinstance(ours, Exception), ours
    for i, (mine, wanted) in enumerate(zip(ours, theirs, strict=True)):
        assert set(mine) == set(wanted)
        for key, value in mine.items():
            assert (value is None) == (wanted[key] is None), f"{key} of parameter {i}"
            if value is not None:
                assert_tensors_match(value, wanted[key], name == "SGD", f"{key} of parameter {i}")


of_two = pytest.mark.parametrize("name", ["SGD", "Adam"])
OF_GROUPS = [key for key in CHANGES if key.startswith(("group", "params"))]


@of_two
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("call", ["step", "step to_zero"])
def test_it_is_asked_as_torch_asks(name: str, change: str, call: str) -> None:
    assert_trials_match(name, CHANGES[change], 2, call)


@pytest.mark.parametrize("change", OF_GROUPS)
@pytest.mark.parametrize("call", ["step to_none", "zero_grad to zero", "zero_grad to None"])
def test_so_where_gradients_are_reset(change: str, call: str) -> None:
    assert_trials_match("SGD", CHANGES[change], 1, call)


@of_two
@pytest.mark.parametrize("change", [*OF_GROUPS, *(key for key in CHANGES if key.endswith("anew"))])
def test_so_in_first_steps(name: str, change: str) -> None:
    assert_trials_match(name, CHANGES[change], 0, "step")


def test_where_all_entries_have_behaviour_of_their_own() -> None:
    """With no other parameter in the step, which else would keep it from the short way."""

    def change(optimizer: Any, _: Any) -> None:
        for p in params_of(optimizer):
            optimizer.state[p] = Forgetful(optimizer.state[p])

    assert_trials_match("Adam", change, 2, "step")


def test_new_state_is_seen_by_an_ordered_dict() -> None:
    """Which has the order of its keys beside the dict that it is."""
    optimizer: Any = fusedoptim.Adam(make_params([(4, 3), (5,)]))
    first, second = params_of(optimizer)
    optimizer.state = OrderedDict({second: OrderedDict()})
    set_grads_of([first, second], 1)
    optimizer.step()
    assert [id(p) for p in optimizer.state] == [id(second), id(first)]
    assert sorted(optimizer.state[second]) == ["exp_avg", "exp_avg_sq", "step"]


def test_what_is_no_dict_has_a_meaning_of_its_own() -> None:
    class Borrows:
        __getitem__, __setitem__, __len__, get = dict.__getitem__, dict.__setitem__, dict.__len__, dict.get

    assert not is_transparent(Borrows())
    assert not is_transparent(None)
