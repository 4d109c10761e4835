"""Steps of one optimizer that meet, in two threads or in the handler of a signal: each is counted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import helpers
import pytest
import torch
from helpers import assert_optimizers_match, make_params, params_of, set_grads

import fusedoptim

path = helpers.path
pytestmark = pytest.mark.usefixtures("path", "one_thread")

SHAPES = [(40, 30), (7,), ()]


def optimizer_of(cls: Any = fusedoptim.Adam, steps: int = 0) -> Any:
    """In two groups, so that a step has begun when it comes to the second."""
    optimizer = cls(make_params(SHAPES))
    optimizer.add_param_group({"params": make_params([(5, 2), (3,)])})
    set_grads(optimizer, 1)
    for _ in range(steps):
        optimizer.step()
    return optimizer


def assert_counted(optimizer: Any, steps: int) -> None:
    counts = [float(optimizer.state[p]["step"]) for p in params_of(optimizer)]
    assert counts == [steps] * len(counts)


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize(("before", "each", "trials"), [(0, 1, 25), (0, 3, 5), (1, 6, 8)])
def test_two_threads(before: int, each: int, trials: int) -> None:
    for _ in range(trials):
        optimizer = optimizer_of(steps=before)
        errors: list[BaseException] = []
        together = threading.Barrier(2)

        def work(o: Any = optimizer, wait: Any = together.wait, errors: Any = errors) -> None:
            try:
                wait(30)
                for _ in range(each):
                    o.step()
            except BaseException as error:
                errors.append(error)

        others = [threading.Thread(target=work) for _ in range(2)]
        for other in others:
            other.start()
        for other in others:
            other.join()
        assert errors == []
        assert_counted(optimizer, before + 2 * each)


@pytest.mark.usefixtures("switching")
def test_a_thread_that_zeroes_gradients_meanwhile() -> None:
    optimizer = optimizer_of()
    stop = threading.Event()

    def zero() -> None:
        while not stop.is_set():
            optimizer.zero_grad(set_to_none=False)

    other = threading.Thread(target=zero)
    other.start()
    try:
        for _ in range(10):
            optimizer.step()
    finally:
        stop.set()
        other.join()
    assert_counted(optimizer, 10)


@contextmanager
def handled(number: int, handler: Callable[..., Any]) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("before", [0, 1])
def test_a_handler_called_at_any_time(before: int) -> None:
    """Between any two bytecodes, some twenty times."""
    optimizer = optimizer_of(steps=before)
    taken = [before]
    inside = threading.Lock()

    def handler(*_: Any) -> None:
        if inside.acquire(blocking=False):  # one handler is enough, and they would pile up on a busy machine
            optimizer.step()
            taken.append(1)
            inside.release()

    with handled(signal.SIGALRM, handler):
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.005)
        try:
            while len(taken) < 60:
                optimizer.step()
                taken.append(1)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    assert_counted(optimizer, sum(taken))


class Rate:
    """A learning rate that runs code when it is read, for the first time."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self.run: Callable[[], Any] | None = run

    def __float__(self) -> float:
        run, self.run = self.run, None
        if run is not None:
            run()
        return 1e-3


class Meddling(fusedoptim.Adam):
    """Runs code when state is made, for the first time."""

    run: Callable[[], Any] | None = None

    def _new_state(self, param: Any, group: Any) -> Any:
        run, self.run = self.run, None
        state = super()._new_state(param, group)
        if run is not None:
            run()
        return state


@pytest.mark.parametrize("in_signal", [True, False])
@pytest.mark.parametrize(
    ("where", "before"),
    [("first lr", 0), ("first lr", 1), ("second lr", 0), ("second lr", 1), ("new state", 0)],
)
def test_a_step_within_a_step(where: str, before: int, in_signal: bool) -> None:
    """It and the one that it interrupts are two steps; one that raises is none."""
    optimizer = optimizer_of(Meddling, before)
    taken = [before]

    def step(*_: Any) -> None:
        optimizer.step()
        taken.append(1)

    run = (lambda: signal.raise_signal(signal.SIGUSR1)) if in_signal else step
    if where == "new state":
        optimizer.run = run
    else:
        optimizer.param_groups[where == "second lr"]["lr"] = Rate(run)
    with handled(signal.SIGUSR1, step), suppress(RuntimeError):  # of the outer step, if it says that it was overtaken
        step()
    assert sum(taken) > before
    expected = optimizer_of(steps=sum(taken))
    assert_counted(optimizer, sum(taken))
    assert_optimizers_match(optimizer, expected, exact=True)


def test_state_with_a_negative_count_put_in_within_a_first_step() -> None:
    optimizer = optimizer_of()
    first = params_of(optimizer)[0]
    before = first.detach().clone()

    def put() -> None:
        optimizer.state[first] = {
            "step": torch.tensor(-3.0), "exp_avg": torch.zeros_like(first), "exp_avg_sq": torch.zeros_like(first)
        }  # fmt: skip

    optimizer.param_groups[1]["lr"] = Rate(put)
    with pytest.raises(RuntimeError, match=r"step must be at least 0, got -3\.0"):
        optimizer.step()
    assert torch.equal(first, before)


def test_a_count_made_negative_within_a_step() -> None:
    optimizer = optimizer_of(steps=1)
    before = [p.detach().clone() for p in params_of(optimizer)]
    count = optimizer.state[params_of(optimizer)[0]]["step"]
    optimizer.param_groups[1]["lr"] = Rate(lambda: count.fill_(-3))
    with pytest.raises(RuntimeError, match=r"step must be at least 0, got -3\.0"):
        optimizer.step()
    assert count == -3
    assert all(torch.equal(p, value) for p, value in zip(params_of(optimizer), before, strict=True))
