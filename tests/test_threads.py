"""Several threads and processes, and what many steps leave behind."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import helpers
import pytest
import torch
from helpers import assert_optimizers_match, in_child, make_params, of_settings, params_of, set_grads
from torch.nn import Parameter

import fusedoptim

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend")

SHAPES = [(300, 40), (7,), (64, 64)]


def train(name: str, options: dict[str, Any], steps: int = 15) -> Any:
    optimizer = getattr(fusedoptim, name)(make_params(SHAPES), **options)
    for seed in range(steps):
        set_grads(optimizer, seed)
        optimizer.step(zero_grad="to_zero")
    return optimizer


@of_settings
def test_several_optimizers_in_several_threads(name: str, options: dict[str, Any]) -> None:
    alone = train(name, options)
    with ThreadPoolExecutor(4) as pool:
        for other in pool.map(lambda _: train(name, options), range(8)):
            assert_optimizers_match(other, alone, exact=True)


def test_one_optimizer_stepped_by_several_threads() -> None:
    """In whatever order the updates meet, none may crash, and once alone the optimizer is as good as new."""
    optimizer = fusedoptim.SGD(make_params(SHAPES), lr=0.0, momentum=0.9)
    before = [p.detach().clone() for p in params_of(optimizer)]
    set_grads(optimizer, 1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: [optimizer.step() for _ in range(20)], range(4)))
    assert all(torch.equal(p, q) for p, q in zip(params_of(optimizer), before, strict=True))


def test_another_thread_replaces_the_state_during_steps() -> None:
    """The tensors that a step works on stay alive until it is done."""

    def work() -> None:
        optimizer = fusedoptim.Adam(make_params([(1000, 200)] * 2), lr=0.01)
        set_grads(optimizer, 1)
        optimizer.step()
        stop = threading.Event()

        def replace() -> None:
            while not stop.is_set():
                for state in list(optimizer.state.values()):
                    for key in ("exp_avg", "exp_avg_sq", "step"):
                        state[key] = state[key].clone()

        other = threading.Thread(target=replace)
        other.start()
        for _ in range(60):
            optimizer.step()
        stop.set()
        other.join()

    in_child(work)


def test_after_fork() -> None:
    optimizer = train("Adam", {})
    expected = train("Adam", {})
    set_grads(expected, 99)
    expected.step()

    def work() -> None:
        set_grads(optimizer, 99)
        optimizer.step()
        assert_optimizers_match(optimizer, expected, exact=True)

    in_child(work)


def test_step_in_inference_mode() -> None:
    one, other = (fusedoptim.Adam(make_params(SHAPES)) for _ in range(2))
    for seed in (1, 2):
        for optimizer in (one, other):
            set_grads(optimizer, seed)
        other.step()
        with torch.inference_mode():
            one.step()
    assert_optimizers_match(one, other, exact=True)


def references(optimizer: Any) -> list[int]:
    tensors = [x for p in params_of(optimizer) for x in (p, p.grad, *optimizer.state[p].values())]
    return [sys.getrefcount(x) for x in [*tensors, *optimizer.param_groups, *optimizer.state.values()]]


@of_settings
def test_no_references_are_kept_or_lost(name: str, options: dict[str, Any]) -> None:
    optimizer = getattr(fusedoptim, name)(make_params(SHAPES), **options)
    set_grads(optimizer, 1)
    optimizer.step()
    before = references(optimizer)
    for mode in (None, "to_zero") * 10:
        optimizer.step(zero_grad=mode)
        optimizer.zero_grad(set_to_none=False)
    for _ in range(10):
        with pytest.raises(ValueError, match="zero_grad"):
            optimizer.step(zero_grad="x")
        optimizer.param_groups[0]["lr"] = "x"
        with pytest.raises(TypeError, match="lr"):
            optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.1
    assert references(optimizer) == before


def test_many_steps_leave_no_objects() -> None:
    optimizer = fusedoptim.Adam(make_params(SHAPES))
    counts = []
    for _ in range(4):
        for seed in range(10):
            set_grads(optimizer, seed)
            optimizer.step(zero_grad="to_none")
        gc.collect()
        counts.append(len(gc.get_objects()))
    assert counts[3] - counts[1] < 10


def test_optimizer_and_parameters_are_freed() -> None:
    optimizer = train("Adam", {})
    watched = [weakref.ref(x) for x in (optimizer, *params_of(optimizer))]
    del optimizer
    gc.collect()
    assert [ref() for ref in watched] == [None] * len(watched)


def _clear(optimizer: Any) -> None:
    optimizer.param_groups[0]["params"].clear()


@pytest.mark.parametrize("meddle", [_clear, lambda o: o.state.clear()])
def test_everything_changes_while_new_state_is_made(meddle: Callable[[Any], Any]) -> None:
    class Meddling(fusedoptim.Adam):
        def _new_state(self, param: Any, group: Any) -> Any:
            state = super()._new_state(param, group)
            meddle(self)
            gc.collect()
            return state

    def work() -> None:
        optimizer = Meddling([Parameter(torch.ones(50_000)) for _ in range(5)])
        for p in params_of(optimizer):
            p.grad = torch.ones(50_000)
        for _ in range(3):
            optimizer.step()

    in_child(work)
