"""The benchmarks call only what is correct correct, and both sides of a comparison do the same work."""

from __future__ import annotations

import shutil
import types
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import ParameterList

import fusedoptim
from benchmarks.shared import arena, correctness, probe, shapes, tails, training, variants

compiler = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="compiles the limit")
MODEL = shapes.Model(((5000,), (70,)), 3, 2)


@pytest.mark.parametrize(("name", "tensors", "elements"), [("resnet50", 161, 25_557_032), ("gpt2", 148, 124_439_808)])
def test_shapes_are_the_published_ones(name: str, tensors: int, elements: int) -> None:
    assert (len(shapes.MODELS[name].shapes), shapes.MODELS[name].elements) == (tensors, elements)


# ---- what is correct ------------------------------------------------------------------------------------------------
def record(overall: float = 1e-6, worst: float = 1e-6, figure: float = 1e-6) -> Any:
    return training.Record(correctness.Error(overall, worst), {1: figure, 2: figure})


@pytest.mark.parametrize("figure", ["overall", "worst", "figure"])
@pytest.mark.parametrize(("error", "correct"), [(1.9e-6, True), (2.1e-6, False), (float("nan"), False)])
def test_a_training_is_correct_if_each_of_its_figures_is(figure: str, error: float, correct: bool) -> None:
    check = object.__new__(training.TrainingCheck)
    check.exact, check.start = {1: [], 2: []}, [torch.zeros(3)]
    records = {name: record() for name in variants.YARDSTICKS}
    verdicts = check.judge({**records, "ours": record(**{figure: error})})
    assert verdicts["ours"].correct == correct
    assert all(verdicts[name].correct for name in records)


@pytest.mark.parametrize("error", [(1e-6, 3e-6), (3e-6, 1e-6)])
def test_a_step_is_correct_if_both_of_its_figures_are(error: tuple[float, float]) -> None:
    others = [correctness.Error(1e-6, 1e-6), correctness.Error(5e-7, 1e-6)]
    assert correctness.no_worse(others[0], others)
    assert not correctness.no_worse(correctness.Error(*error), others)


def test_one_wild_element_is_an_error() -> None:
    """As a share of the farthest move, wherever it stands; the figure over all elements takes them together."""
    start, exact = [torch.zeros(4), torch.zeros(2)], [torch.full((4,), 2.0), torch.tensor([1.0, 3.0])]
    for tensor, element in ((0, 3), (1, 0)):
        params = [t.clone() for t in exact]
        params[tensor][element] += 0.6
        error = correctness.Error.of(params, exact, start)
        assert error.worst == pytest.approx(0.2)
        assert error.overall == pytest.approx(0.6 / 26**0.5)
    assert correctness.Error.of([torch.full((4,), torch.nan), exact[1]], exact, start).worst == torch.inf


@pytest.mark.parametrize("forgotten", [0, 1])
def test_gradients_that_a_step_leaves_are_noticed(forgotten: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgets(fusedoptim.SGD):
        def step(self, closure: Any = None, *, zero_grad: Any = None) -> Any:
            kept = self.param_groups[0]["params"][forgotten].grad
            before = kept.clone()
            result = super().step(closure, zero_grad=zero_grad)
            kept.copy_(before)
            return result

    for cls, correct in ((fusedoptim.SGD, True), (Forgets, False)):
        module = types.SimpleNamespace(SGD=cls)
        monkeypatch.setitem(variants.VARIANTS, variants.OURS, replace(variants.VARIANTS[variants.OURS], module=module))
        verdicts = arena.Arena(MODEL, "sgd").check((variants.OURS, arena.OURS_TO_ZERO))
        assert verdicts[variants.OURS].correct
        assert verdicts[arena.OURS_TO_ZERO].correct == correct


# ---- the same work --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tail", tails.TAILS)
@pytest.mark.parametrize("mode", ["separate", "to_zero", "to_none"])
def test_gradients_are_scaled_and_cleared_alike(mode: str, tail: str) -> None:
    for variant in variants.VARIANTS.values():
        model = ParameterList([torch.ones(3)])
        (p,) = model.parameters()
        some = tails.Tail(tail, variant, "sgd", model, 0.5, mode)
        assert some.scale == (2**16 if "amp" in tail else 1)
        some.begin()
        p.grad = torch.full((3,), 0.125 * some.scale)  # too short to be clipped
        some.run()
        some.begin()
        assert torch.equal(p.detach(), torch.full((3,), 0.9375)), variant.name
        assert p.grad is None if mode != "to_zero" else not p.grad.any(), variant.name


def test_an_overflow_is_seen_by_all() -> None:
    for variant in variants.VARIANTS.values():
        model = ParameterList([torch.ones(3)])
        some = tails.Tail("clip+amp+ema", variant, "sgd", model, 0.5)
        model[0].grad = torch.tensor([1.0, torch.inf, 1.0])
        some.run()
        assert torch.equal(model[0].detach(), torch.ones(3)), variant.name
        assert some.scale == 2**15, variant.name


@compiler
@pytest.mark.parametrize("rule", variants.ALL_RULES)
def test_the_limit_moves_all_that_a_step_moves(rule: str) -> None:
    """Parameters and state are read and written, gradients, which come last, are read."""
    some = arena.SharedTensors(MODEL, rule)
    limit = some.probe(chosen=[next(probe.ways(1))])
    places = [[t.data_ptr() for t in tensors] for tensors in limit.streams]
    assert places[0] == [p.data_ptr() for p in some.params]
    assert places[1:-1] == [[t.data_ptr() for t in tensors] for tensors in some.state.values()]
    assert places[-1] == [g.data_ptr() for g in some.grads]
    assert limit.written == 1 + len(variants.ALL_RULES[rule].state)
    assert all(len(t) == len(MODEL.shapes) for t in places)
