"""Checkpoints of torch's inputs: written, read, from older releases, with names, and by hooks."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from helpers import make_params, params_of, randn, set_grads
from torch import Tensor
from torch_inputs import Input, Problem, assert_close, assert_params_close, of_inputs

EXACT = {"rtol": 0, "atol": 0}
SERIALISED = ("native-fused", "reference", "foreach")
of_names_given = pytest.mark.parametrize(
    "named", [(0, 0), (0, 1), (1, 0), (1, 1)], ids=["none", "second", "first", "both"]
)


def trained(each: Input, steps: int = 3, named: bool = False) -> tuple[Problem, Any]:
    problem = Problem()
    optimizer = each.ours(problem.named(named))
    problem.train(optimizer, steps)
    return problem, optimizer


def copied(problem: Problem) -> Problem:
    other = Problem()
    with torch.no_grad():
        for p, q in zip(other.params, problem.params, strict=True):
            p.copy_(q)
    return other


def assert_same(x: Any, y: Any) -> None:
    """Equal dictionaries, lists, tensors and anything else."""
    assert type(x) is type(y)
    if isinstance(x, Tensor):
        assert_close(x, y, **EXACT)
    elif isinstance(x, dict):
        assert x.keys() == y.keys()
        assert_same(list(x.values()), list(y.values()))
    elif isinstance(x, (list, tuple)):
        for a, b in zip(x, y, strict=True):
            assert_same(a, b)
    else:
        assert x == y


def nameless(state_dict: dict[str, Any]) -> dict[str, Any]:
    groups = [{k: v for k, v in group.items() if k != "param_names"} for group in state_dict["param_groups"]]
    return {**state_dict, "param_groups": groups}


@of_inputs("native", "for-loop")
@of_names_given
def test_state_dict_deterministic(each: Input, named: tuple[bool, bool]) -> None:
    """Two optimizers of one state go on identically, and save the same; names take no part in it."""
    first, optimizer = trained(each, 4, named[0])
    second = copied(first)
    other = each.ours(second.named(named[1]))
    saved = optimizer.state_dict()
    given = copy.deepcopy(saved)  # as in torch, what is loaded shares its tensors with the file
    other.load_state_dict(given)
    assert_same(given, saved)
    for _ in range(2):
        assert first.train(optimizer, 2) == second.train(other, 2)
    assert_params_close(other, optimizer, **EXACT)
    assert_same(nameless(other.state_dict()), nameless(optimizer.state_dict()))
    other.param_groups.extend(other.param_groups)  # a group listed twice is saved as the same twice
    assert_same(nameless(other.state_dict())["param_groups"], nameless(optimizer.state_dict())["param_groups"] * 2)


def conv_model() -> tuple[Any, Tensor]:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Conv2d(4, 2, 1, stride=2), torch.nn.BatchNorm2d(2)), randn((1, 4, 16, 16), 1)


def train(model: Any, x: Tensor, optimizer: Any, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).pow(3).sum().backward()
        optimizer.step()


@of_inputs(*SERIALISED)
def test_can_load_older_state_dict(each: Input) -> None:
    """Without the flags that the optimizer had not when it came into torch."""
    results = []
    for old in (False, True):
        model, x = conv_model()
        optimizer = each.ours(model.parameters())
        train(model, x, optimizer, 3)
        saved = copy.deepcopy(optimizer.state_dict())
        for group in saved["param_groups"] if old else ():
            for flag in each.info.not_og_supported_flags:
                if not group.get(flag) or flag in ("foreach", "fused"):  # what is on would be lost
                    group.pop(flag, None)
        optimizer.load_state_dict(saved)
        train(model, x, optimizer, 2)
        results.append(optimizer)
    exact = each.path.is_ours or each.name == "SGD"
    assert_params_close(results[1], results[0], **EXACT if exact else {})
    assert all(p.grad.abs().sum() > 0 for p in params_of(results[0])[2:])


@of_inputs("native-fused", "foreach")
@of_names_given
def test_can_load_from_to_named_state_dict(each: Input, named: tuple[bool, bool]) -> None:
    model, x = conv_model()
    first, second = (each.ours(model.named_parameters() if n else model.parameters()) for n in named)
    train(model, x, first, 3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(model, x, second, 1)
    names = second.state_dict()["param_groups"][0].get("param_names")
    assert names == (["0.weight", "0.bias", "1.weight", "1.bias"] if any(named) else None)
    steps = {float(state["step"]) for state in second.state.values() if "step" in state}
    assert steps == (set() if each.name == "SGD" else {4.0})


@of_inputs(*SERIALISED)
@pytest.mark.parametrize("named", [False, True], ids=["", "named"])
def test_save_load_equality_with_weights_only(each: Input, named: bool) -> None:
    saved = trained(each, named=named)[1].state_dict()
    file = io.BytesIO()
    torch.save(saved, file)
    for weights_only in (True, False):
        file.seek(0)
        assert_same(torch.load(file, weights_only=weights_only), saved)


@of_inputs(*SERIALISED, only=lambda each: each.name != "SGD")
def test_load_nontensor_step(each: Input) -> None:
    """A step count that is a number goes on as the tensor would."""
    results = []
    for plain in (False, True):
        optimizer = each.ours(make_params())
        for seed in range(3):
            set_grads(optimizer, seed)
            optimizer.step()
        saved = copy.deepcopy(optimizer.state_dict())
        for state in saved["state"].values() if plain else ():
            state["step"] = state["step"].item()
        optimizer.load_state_dict(saved)
        set_grads(optimizer, 3)
        optimizer.step()
        results.append(optimizer)
    assert_params_close(results[1], results[0], **EXACT)


@of_inputs("native", "reference")
def test_cpu_load_state_dict(each: Input) -> None:
    """The file says a flag that the optimizer which wrote it had not, as after ``map_location="cpu"``."""
    for flag in ["fused"] if each.name == "SGD" else ["fused", "capturable"]:
        load_with(each, flag)


def load_with(each: Input, flag: str) -> None:
    problem, optimizer = trained(each)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0][flag] = True
    second = copied(problem)
    other = each.ours(second.params, **{flag: True})
    other.load_state_dict(saved)
    assert other.param_groups[0][flag] is True
    assert second.train(other, 2) == problem.train(optimizer, 2)
    assert_params_close(other, optimizer, **EXACT)


@of_inputs("native-fused", "foreach")
def test_state_dict_in_both_directions(each: Input) -> None:
    """Torch's optimizer goes on from ours, and ours from torch's, for every input."""
    for ours_first in (True, False):
        makers = (each.ours, each.torchs) if ours_first else (each.torchs, each.ours)
        problem = Problem()
        first = makers[0](problem.params)
        problem.train(first, 3)
        second_problem = copied(problem)
        second = makers[1](second_problem.params)
        saved = copy.deepcopy(first.state_dict())
        if ours_first:
            saved["param_groups"][0].update(foreach=False, fused=False)  # torch takes its flags from the file
            saved["param_groups"][0].update({"capturable": False} if "capturable" in each.options() else {})
        second.load_state_dict(saved)
        problem.train(first, 2)
        second_problem.train(second, 2)
        for p, q in zip(second_problem.params, problem.params, strict=True):
            assert_close(p, q, **EXACT if each.name == "SGD" else {})
