"""``explain_step`` names what it is about a parameter, its gradient or its state that keeps it from the fast path."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import helpers
import pytest
import torch
from helpers import count_calls, make_params, params_of, set_grads, torch_steps
from torch import Tensor
from torch.nn import Parameter

import fusedoptim
from fusedoptim import native as compiled
from fusedoptim.step import FusedStep

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend", "one_thread")


class Sub(Tensor):
    """A subclass of no meaning."""


class Case(NamedTuple):
    """What is changed of a trained parameter, who then takes it with the kernels and on the reference path, and why."""

    change: Callable[[Any, dict[str, Tensor]], Any]
    taker: str
    reason: str
    of_reference: str = ""  # which takes it where there is no reason; else torch does
    start: Callable[[], Tensor] = lambda: torch.ones(2, 3)


def grad(change: Callable[[Any], Tensor]) -> Callable[[Any, dict[str, Tensor]], Any]:
    return lambda p, _: setattr(p, "grad", change(p))


def state(**changes: Callable[[dict[str, Tensor]], Tensor]) -> Callable[[Any, dict[str, Tensor]], Any]:
    return lambda _, own: own.update({name: change(own) for name, change in changes.items()})


def of_inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


def overlapping() -> Tensor:
    return torch.ones(8).as_strided((2, 3), (1, 1))


def with_holes() -> Tensor:
    return torch.ones(2, 6)[:, ::2]


GENERAL, TORCH = "general path", "torch"
CASES = {
    "six dimensions": Case(
        lambda *_: None, GENERAL, "it is not a plain strided CPU tensor of", start=lambda: torch.ones(1, 1, 1, 1, 1, 2)
    ),
    "holes": Case(
        grad(lambda _: with_holes()), GENERAL, "its elements do not fill one stretch of memory", start=with_holes
    ),
    "overlapping": Case(
        lambda *_: None, TORCH, "its elements may share memory", "its elements may share memory", overlapping
    ),
    "gradient of inference": Case(
        grad(lambda p: of_inference(p.grad)), GENERAL, "its gradient is not a plain strided CPU tensor of"
    ),
    "gradient of a subclass": Case(
        grad(lambda p: p.grad.as_subclass(Sub)), TORCH,
        "its gradient is a tensor subclass", "it or its gradient is a tensor subclass",
    ),
    "negated gradient": Case(
        grad(lambda p: torch._neg_view(p.grad)), TORCH, "it or its gradient is a lazily negated view"
    ),
    "itself as gradient": Case(grad(lambda p: p.detach()), TORCH, "it shares memory with its gradient"),
    "empty state": Case(lambda _, own: own.clear(), GENERAL, "its state is not complete"),
    "state of inference": Case(
        state(exp_avg=lambda own: of_inference(own["exp_avg"])), GENERAL, "its state is not a plain strided CPU tensor"
    ),
    "strided state": Case(
        state(exp_avg=lambda _: torch.ones(3, 2).t()), GENERAL, "its state has another shape or strides"
    ),
    "state of a subclass": Case(
        state(exp_avg=lambda own: own["exp_avg"].as_subclass(Sub)), TORCH,
        "its state is not a plain tensor", "its state is not a plain tensor or dict",
    ),
    "overlapping state": Case(
        state(exp_avg=lambda _: overlapping()), TORCH,
        "elements of its state may share memory", "its state is not a plain tensor or dict",
    ),
    "negated state": Case(
        state(exp_avg=lambda own: torch._neg_view(own["exp_avg"])), TORCH, "its state is a lazily negated view"
    ),
    "state in one place": Case(
        state(exp_avg=lambda own: own["exp_avg_sq"]), TORCH, "its state shares memory with it, its gradient or other"
    ),
    "count of inference": Case(
        state(step=lambda own: of_inference(own["step"])), GENERAL,
        "a number of its state is not one float32 or float64 on the CPU"
    ),
    "count of a subclass": Case(
        state(step=lambda own: own["step"].as_subclass(Sub)), TORCH,
        "a number of its state is not a plain tensor", "its state is not a plain tensor or dict",
    ),
    "short count": Case(
        state(step=lambda _: torch.tensor(1.0).half()), TORCH, "a number of its state is not float32 or float64"
    ),
}  # fmt: skip


def trained(start: Tensor, change: Callable[[Any, dict[str, Tensor]], Any]) -> Any:
    """An optimizer of a plain parameter and another, in a group of its own, that was changed after a step."""
    optimizer = fusedoptim.Adam([{"params": make_params([(4, 3)])}, {"params": [Parameter(start)]}])
    for seed in range(2):
        set_grads(optimizer, seed)
        if seed == 0:
            optimizer.step()
    second = params_of(optimizer)[1]
    change(second, optimizer.state[second])
    return optimizer


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_reason_is_named(case: Case, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "native" and compiled.direct_error:
        pytest.skip(compiled.direct_error)
    usual, taker, reason = "fast path", case.taker, case.reason
    if backend == "reference":
        usual, taker, reason = "reference", TORCH if case.of_reference else "reference", case.of_reference
    optimizer = trained(case.start(), case.change)
    first, second = fusedoptim.explain_step(optimizer)
    assert (first.taken_by, first.reason) == (usual, "")
    assert second.taken_by == taker
    assert second.reason.startswith(reason)
    assert bool(second.reason) == bool(reason)

    left, general = torch_steps(monkeypatch), count_calls(monkeypatch, FusedStep, "_general_step")
    optimizer.step()
    assert len(general) == 1
    assert [[len(group) for group in params] for (params, *_) in left] == ([[0, 1]] if taker == TORCH else [])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda _, own: own.pop("exp_avg"), "the state has no 'exp_avg'"),
        (state(exp_avg=lambda own: own["exp_avg"][:1]), "exp_avg has shape (1, 3), which does not fit"),
        (state(step=lambda _: torch.tensor(-3.0)), "step must be at least 0, got -3.0"),
    ],
    ids=["incomplete state", "state of another shape", "negative count"],
)
def test_an_error_is_told_of_the_parameter_that_it_is_of(change: Any, reason: str) -> None:
    optimizer = trained(torch.ones(2, 3), change)
    explained = fusedoptim.explain_step(optimizer)[1]
    assert explained.param.startswith("parameter 0 of group 1 ")
    assert explained.taken_by == "nobody"
    assert explained.reason.startswith(reason)
    assert "group 0" not in explained.reason
    with pytest.raises((RuntimeError, KeyError), match=re.escape(reason)):
        optimizer.step()
