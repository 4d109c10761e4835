"""Checkpoints between all implementations, ours and torch's: what goes on with one is what the numbers in it say."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from helpers import assert_optimizers_match, make_params, params_of, set_grads
from torch.nn import Parameter

import fusedoptim
from fusedoptim.checkpoints import load, memory
from fusedoptim.checkpoints.quick_checks import are_counts

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend", "one_thread")

FLAGS: dict[str, dict[str, Any]] = {
    "default": {},
    "for-loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"capturable": True},
}
of_saved = pytest.mark.parametrize("saved", FLAGS.values(), ids=FLAGS)
MODULES = {"ours": fusedoptim, "torch": torch.optim}
of_modules = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)


def trained(module: Any, name: str, options: dict[str, Any], flags: dict[str, Any], dtype: Any = torch.float32) -> Any:
    """After two steps, of which the second had no gradient for one parameter."""
    if "capturable" in flags and name == "SGD":
        pytest.skip("SGD knows no capturable")
    optimizer = getattr(module, name)(make_params(dtype=dtype), **options, **flags)
    on_host = module is torch.optim and "capturable" in flags  # whose step torch takes on no CPU
    for seed in (1, 2):
        set_grads(optimizer, seed)
        params_of(optimizer)[2].grad = None if seed == 2 else params_of(optimizer)[2].grad
        optimizer.param_groups[0].update({"capturable": False} if on_host else {})
        optimizer.step()
    optimizer.param_groups[0].update({"capturable": True} if on_host else {})
    return optimizer


def beside(optimizer: Any, module: Any, flags: dict[str, Any]) -> Any:
    """A new optimizer on equal parameters, all its numbers different."""
    params = [Parameter(p.detach().clone()) for p in params_of(optimizer)]
    return getattr(module, type(optimizer).__name__)(params, lr=9.0, **flags)


def filled_by_hand(optimizer: Any, module: Any, flags: dict[str, Any]) -> Any:
    """The same, with the numbers of the other one put in, number by number."""
    other = beside(optimizer, module, flags)
    for group, source in zip(other.param_groups, optimizer.param_groups, strict=True):
        own = ("params", "param_names", *(key for each in FLAGS.values() for key in each))
        group.update({key: copy.deepcopy(value) for key, value in source.items() if key not in own})
    for p, q in zip(params_of(other), params_of(optimizer), strict=True):
        if q in optimizer.state:
            other.state[p] = {key: copy.deepcopy(value) for key, value in optimizer.state[q].items()}
    return other


of_states = pytest.mark.parametrize(
    ("name", "options"),
    [helpers.SETTINGS[1], helpers.SETTINGS[2], helpers.SETTINGS[3]],
    ids=["momentum", "Adam", "AdamW"],
)


@of_states
@of_saved
@of_modules
def test_every_pair_of_implementations(module: Any, name: str, options: dict[str, Any], saved: dict[str, Any]) -> None:
    source = trained(module, name, options, saved)
    file = source.state_dict()
    for target in MODULES.values():
        for flags in FLAGS.values():
            if "capturable" in flags and (name == "SGD" or target is torch.optim):
                continue
            loaded, expected = beside(source, target, flags), filled_by_hand(source, target, flags)
            loaded.load_state_dict(copy.deepcopy(file))
            if target is torch.optim:  # which takes the flags of the file
                loaded.param_groups[0].update({"foreach": None, "fused": None, **flags})
                loaded.param_groups[0].update({"capturable": False} if "capturable" in options | saved else {})
            for optimizer in (loaded, expected):
                set_grads(optimizer, 3)
                optimizer.step()
            assert_optimizers_match(loaded, expected, exact=True)


@of_states
@of_saved
@pytest.mark.parametrize(("dtype", "weights_only"), [(torch.float32, True), (torch.bfloat16, False)], ids=str)
def test_resumed_training_is_that_which_was_never_interrupted(
    name: str, options: dict[str, Any], saved: dict[str, Any], dtype: torch.dtype, weights_only: bool
) -> None:
    optimizer = trained(fusedoptim, name, options, saved, dtype)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = beside(optimizer, fusedoptim, saved)
    resumed.load_state_dict(torch.load(file, weights_only=weights_only))
    for seed in (3, 4):
        for each in (optimizer, resumed):
            set_grads(each, seed)
            each.step()
        assert_optimizers_match(resumed, optimizer, exact=True)


STEPS: dict[str, Callable[[float], Any]] = {
    "int": int,
    "float": float,
    "numpy": np.float32,
    "one element": lambda n: torch.tensor([n]),
    "float64": lambda n: torch.tensor(n, dtype=torch.float64),
    "int64": lambda n: torch.tensor(int(n)),
    "int32, one element": lambda n: torch.tensor([n], dtype=torch.int32),
    "bfloat16": lambda n: torch.tensor(n, dtype=torch.bfloat16),
    "requires_grad": lambda n: torch.tensor(n, requires_grad=True),
}


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("flags", [{}, {"fused": True}, {"capturable": True}], ids=str)
def test_every_form_of_step(make: Callable[[float], Any], flags: dict[str, Any], kernels_only: None) -> None:
    """And the kernels, which count in float32 or float64, stay in use."""
    optimizer = trained(fusedoptim, "Adam", {}, flags)
    saved = copy.deepcopy(optimizer.state_dict())
    for entry in saved["state"].values():
        entry["step"] = make(float(entry["step"]))
    other = beside(optimizer, fusedoptim, flags)
    other.load_state_dict(saved)
    for each in (optimizer, other):
        set_grads(each, 3)
        each.step()
    for p, q in zip(params_of(optimizer), params_of(other), strict=True):
        assert torch.equal(p, q)
        assert optimizer.state[p]["step"] == other.state[q]["step"]
        assert not other.state[q]["step"].requires_grad


@pytest.mark.parametrize(
    ("form", "fused", "dtype"),
    [
        ("int", None, torch.float64),
        ("int64", None, torch.float64),
        ("bfloat16", None, torch.float64),
        ("int64", True, torch.float32),
        ("bfloat16", True, torch.float32),
    ],
)
def test_a_step_of_another_dtype_becomes_what_the_optimizer_makes(
    form: str, fused: bool | None, dtype: torch.dtype
) -> None:
    """Where float64 is the default, but for fused=True, that is float64."""
    torch.set_default_dtype(torch.float64)
    try:
        optimizer = trained(fusedoptim, "Adam", {}, {"fused": fused})
        saved = copy.deepcopy(trained(fusedoptim, "Adam", {}, {}).state_dict())
        for entry in saved["state"].values():
            entry["step"] = STEPS[form](float(entry["step"]))
        other = beside(optimizer, fusedoptim, {"fused": fused})
        other.load_state_dict(saved)
    finally:
        torch.set_default_dtype(torch.float32)
    for each in (optimizer, other):
        assert {state["step"].dtype for state in each.state.values()} == {dtype}


@pytest.mark.parametrize("key", ["maximize", "foreach", "capturable", "differentiable", "fused", "amsgrad", "nesterov"])
@helpers.of_names
def test_a_group_without_a_newer_key(name: str, key: str) -> None:
    twins = helpers.Twins(name, {"momentum": 0.9} if name == "SGD" else {})
    twins.step(2)
    for optimizer in twins:
        saved = copy.deepcopy(optimizer.state_dict())
        saved["param_groups"][0].pop(key, None)
        saved["param_groups"][0].pop("decoupled_weight_decay", None)
        optimizer.load_state_dict(saved)
    assert set(twins.ours.param_groups[0]) == set(twins.theirs.param_groups[0])
    twins.step(2)


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("loading", [torch.float32, torch.bfloat16], ids=str)
def test_state_is_cast_to_the_dtype_of_the_parameter_as_by_torch(saved: torch.dtype, loading: torch.dtype) -> None:
    """All but float32 state of parameters of 16 bits, which is kept."""
    source = trained(torch.optim, "AdamW", {"amsgrad": True}, {}, saved)
    ours, theirs = (module.AdamW(make_params(dtype=loading)) for module in (fusedoptim, torch.optim))
    for optimizer in (ours, theirs):
        optimizer.load_state_dict(copy.deepcopy(source.state_dict()))
    kept = saved == torch.float32
    assert {s["exp_avg"].dtype for s in ours.state.values()} == {saved if kept else loading}
    for mine, its in zip(ours.state.values(), theirs.state.values(), strict=True):
        assert all(torch.equal(mine[name].to(its[name].dtype), its[name]) for name in its)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("file_named", [True, False])
def test_names_are_those_that_torch_ends_with(named: bool, file_named: bool) -> None:
    results = []
    for module in MODULES.values():
        file, own = (
            module.Adam([(f"{prefix}{i}", p) for i, p in enumerate(make_params())] if wanted else make_params())
            for prefix, wanted in (("file", file_named), ("own", named))
        )
        own.load_state_dict(file.state_dict())
        results.append(own.param_groups[0].get("param_names"))
        set_grads(own, 1)
        own.step()
    assert results[0] == results[1]


@pytest.mark.parametrize("own", FLAGS.values(), ids=FLAGS)
@of_saved
def test_who_takes_the_step_stays_as_the_optimizer_was_made(own: dict[str, Any], saved: dict[str, Any]) -> None:
    source = trained(torch.optim, "Adam", {}, saved)
    source.param_groups[0]["differentiable"] = True
    optimizer = fusedoptim.Adam(make_params(), **own)
    before = {key: optimizer.param_groups[0][key] for key in ("foreach", "fused", "capturable", "differentiable")}
    scaled = getattr(optimizer, "_step_supports_amp_scaling", None)
    optimizer.load_state_dict(source.state_dict())
    assert {key: optimizer.param_groups[0][key] for key in before} == before
    assert getattr(optimizer, "_step_supports_amp_scaling", None) is scaled


SHARED: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "one tensor": lambda count, i: count,
    "that requires grad": lambda count, i: count.requires_grad_(),
    "views": lambda count, i: count.view(()),
    "elements of an expanded one": lambda count, i: count.expand(9)[i],
}


@pytest.mark.parametrize("share", SHARED.values(), ids=SHARED)
def test_a_count_that_stands_for_several_parameters_is_counted_by_each(
    backend: str, share: Callable[[torch.Tensor, int], torch.Tensor]
) -> None:
    """So FSDP saves the parameters of one module, and torch.save keeps it one tensor."""
    optimizer = trained(fusedoptim, "Adam", {}, {})
    for state in optimizer.state.values():
        state["step"].fill_(7)
    shared = copy.deepcopy(optimizer.state_dict())
    count = shared["state"][0]["step"]
    for i, entry in enumerate(shared["state"].values()):
        entry["step"] = share(count, i)
    other = beside(optimizer, fusedoptim, {})
    other.load_state_dict(shared)
    for each in (optimizer, other):
        set_grads(each, 3)
        each.step()
    assert_optimizers_match(other, optimizer, exact=True)


def test_a_usual_state_takes_the_quick_look_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thorough checks take three times as long."""
    for of, thorough in ((load, "check_entry"), (memory, "_memory_range")):
        monkeypatch.setattr(of, thorough, lambda *args: pytest.fail("looked thoroughly"))
    for name, options in helpers.SETTINGS:
        for dtype in (torch.float32, torch.bfloat16):
            params = make_params(dtype=dtype)
            params.append(Parameter(torch.ones(2, 3, 4, 5, dtype=dtype).to(memory_format=torch.channels_last)))
            optimizer = getattr(fusedoptim, name)(params, **options)
            set_grads(optimizer, 1)
            params[1].grad = None  # and so no state
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, 2.0**54])
@pytest.mark.parametrize("place", [0, 1])
def test_counts_on_a_device_are_asked_at_once(place: int, bad: float) -> None:
    counts = [torch.tensor(2.0**53), torch.tensor(0.0)]
    assert are_counts(counts)
    counts[place].fill_(bad)
    assert not are_counts(counts)
    assert not are_counts([torch.tensor(1.0), torch.tensor(1.0, device="meta")])


class CountedIndex(int):
    """An index that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        CountedIndex.compared += 1
        return int(self) == other

    __hash__ = int.__hash__


def test_time_does_not_grow_with_the_square_of_the_number_of_parameters() -> None:
    count = 300
    params = [Parameter(torch.ones(1)) for _ in range(count)]
    optimizer = fusedoptim.Adam(params)
    set_grads(optimizer, 1)
    optimizer.step()
    saved = optimizer.state_dict()
    saved["param_groups"][0]["params"] = [CountedIndex(i) for i in range(count)]
    saved["state"] = {CountedIndex(i): entry for i, entry in saved["state"].items()}
    CountedIndex.compared = 0
    optimizer.load_state_dict(saved)
    assert 0 < CountedIndex.compared < 20 * count
