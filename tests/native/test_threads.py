"""Several threads and processes, and what many steps leave behind."""

from __future__ import annotations

import copy
import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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


@contextmanager
def another_optimizer_loads() -> Iterator[None]:
    """Meanwhile a thread loads now one, now another state into an optimizer of its own."""
    states = [train("AdamW", {"amsgrad": True}, steps).state_dict() for steps in (1, 3)]
    third, stop, loads = train("AdamW", {"amsgrad": True}, 1), threading.Event(), 0

    def load() -> None:
        nonlocal loads
        while not stop.is_set() or loads < 2:
            third.load_state_dict(copy.deepcopy(states[loads % 2]))
            loads += 1

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(load)
        try:
            yield
        finally:
            stop.set()
        done.result()
    loaded, wanted = third.state_dict()["state"], states[(loads - 1) % 2]["state"]
    assert all(torch.equal(value, wanted[i][key]) for i, state in loaded.items() for key, value in state.items())


@pytest.mark.usefixtures("switching")
def test_two_optimizers_that_share_nothing() -> None:
    jobs: list[tuple[str, dict[str, Any]]] = [("SGD", {"lr": 0.1, "momentum": 0.9}), ("Adam", {"amsgrad": True})]
    alone = [train(name, options, steps=40) for name, options in jobs]
    with another_optimizer_loads(), ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda job: train(*job, steps=40), jobs))
    for one, other in zip(together, alone, strict=True):
        assert_optimizers_match(one, other, exact=True)


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_two_optimizers_on_the_same_parameters(dtype: torch.dtype, backend: str) -> None:
    """A step may be lost where the other one writes at the same time, but every element is one that steps lead to."""
    if backend == "reference" and dtype == torch.float64:
        pytest.skip("the reference reads a float64 several times in one multiply-add, between which it may change")
    params = [Parameter(torch.ones(shape, dtype=dtype)) for shape in SHAPES]
    both = [fusedoptim.SGD(params, lr=1 / 3) for _ in range(2)]
    for p in params:
        p.grad = torch.full_like(p, 1 / 7)
    each, alone = 40, fusedoptim.SGD([Parameter(torch.ones(1, dtype=dtype))], lr=1 / 3)
    (one,) = params_of(alone)
    one.grad = torch.full_like(one, 1 / 7)
    possible = []
    for _ in range(2 * each):
        alone.step()
        possible.append(one.item())
    with another_optimizer_loads(), ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda optimizer: [optimizer.step() for _ in range(each)], both))
    for p in params:
        assert set(p.flatten().tolist()) <= set(possible)


@pytest.mark.usefixtures("switching")
def test_two_adams_on_the_same_parameters() -> None:
    params = make_params(SHAPES)
    before = [p.detach().clone() for p in params]
    both = [fusedoptim.Adam(params, lr=0.01), fusedoptim.AdamW(params, lr=0.01, weight_decay=0)]
    set_grads(both[0], 1)
    with another_optimizer_loads(), ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda optimizer: [optimizer.step() for _ in range(40)], both))
    for p, old in zip(params, before, strict=True):  # with one gradient for all steps, each goes by lr, or nearly
        assert (p - old).abs().le(2 * 40 * 0.01 * 1.01).all()
    for optimizer in both:
        assert all(state["step"] == 40 for state in optimizer.state.values())
    torch.testing.assert_close(
        *([x for p in params for x in (o.state[p]["exp_avg"], o.state[p]["exp_avg_sq"])] for o in both), rtol=0, atol=0
    )


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


def test_state_that_is_replaced_before_the_write_is_what_is_written() -> None:
    """No update is lost to a tensor that nobody has any more."""
    one, other = (fusedoptim.Adam(make_params(SHAPES)) for _ in range(2))
    for optimizer in (one, other):
        set_grads(optimizer, 1)
        optimizer.step()
    other.step()
    executor = one._new_executor()
    arguments = one.param_groups, one.state, one._new_state, False
    executor.prepare(*arguments)
    for state in one.state.values():
        state.update({key: value.clone() for key, value in state.items()})
    if not executor.apply(one.state, False):
        executor.prepare(*arguments)
        assert executor.apply(one.state, False)
    assert_optimizers_match(one, other, exact=True)


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
