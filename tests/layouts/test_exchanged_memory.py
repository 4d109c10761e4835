"""Code that runs in the middle of a step and exchanges what the step is about to write to.

Each parameter then takes the step as it now is, or an error says that memory was exchanged and nothing was written. An
update never goes to memory that nobody owns any more: here freed memory is unmapped at once, so that writing to it
kills the process, and the memory of old tensors that somebody does hold is compared.
"""

from __future__ import annotations

import functools
import gc
import itertools
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import helpers
import pytest
import torch
from exchanges import (
    ACTIONS,
    ERRORS,
    OPTIONS,
    TRIGGERS,
    Rate,
    optimizer_of,
    unmap_what_is_freed,
)
from helpers import in_child, params_of
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

import fusedoptim

path = helpers.path
pytestmark = pytest.mark.usefixtures("path")

# What may come of it.


def values(tensors: Any) -> list[Tensor]:
    return [x.detach().clone() for x in tensors]


def state_of(optimizer: Any, p: Any) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in (optimizer.state.get(p) or {}).items() if value is not None}


def is_one_of(value: Tensor, *others: Tensor | None) -> bool:
    return any(other is not None and torch.equal(value, other) for other in others)


@functools.cache
def outcomes(path: str, name: str, action: Any, steps: int, strided: bool) -> list[tuple[Any, list[Any]]]:
    """Optimizers that have stepped as usual, and after the action, with their parameters; ``path`` is in use."""
    usual, after_action = (optimizer_of(fusedoptim, name, steps, strided) for _ in range(2))
    usual.step()
    found = [(each, params_of(each)) for each in (usual, after_action)]
    action(*found[1])
    try:
        after_action.step()
    except KeyError:
        found[1] = found[0]
    return found


def trial(
    path: str, name: str, trigger: str, action: Any, steps: int, strided: bool, skipped: int, zero_grad: str | None
) -> None:
    """Let the action happen once, at an opportunity after so many others; then look at all there is."""
    (usual, usual_params), (after_action, params) = outcomes(path, name, action, steps, strided)

    optimizer = optimizer_of(fusedoptim, name, steps, strided)
    own = params_of(optimizer)
    held = list(range(0, len(own), 2))  # of these somebody holds the old memory; that of the others is gone
    old, old_grads = {i: own[i].detach() for i in held}, {i: own[i].grad.detach() for i in held}
    was, grads_were = values(own), values(p.grad for p in own)
    state_was = [state_of(optimizer, p) for p in own]
    opportunities = itertools.count()

    def act() -> None:
        if next(opportunities) == skipped:
            action(optimizer, own)

    error = None
    with TRIGGERS[trigger](act, optimizer):
        try:
            optimizer.step(zero_grad=zero_grad)
        except ERRORS as raised:
            error = raised
    for i, p in enumerate(own):
        now = state_of(optimizer, p)
        if error is not None:
            assert torch.equal(p, was[i]), f"parameter {i} was written to, and then {error!r}"
            assert all(torch.equal(value, state_was[i][key]) for key, value in now.items()), f"state of {i}: {error!r}"
        else:
            assert is_one_of(p, usual_params[i], params[i]), f"parameter {i} took no step, or another"
            expected = [state_of(usual, usual_params[i]), state_of(after_action, params[i])]
            for key, value in now.items():
                assert is_one_of(value, *(each.get(key) for each in expected)), f"{key} of {i}"
        if i in old:  # written to before the exchange, it is what was copied, or was never written to
            assert is_one_of(old[i], was[i], p), f"the old memory of parameter {i} was written to, and not the new"
            assert p.grad is None or is_one_of(old_grads[i], grads_were[i], p.grad), (
                f"the old gradient of {i} was zeroed"
            )


# Steps before, a strided gradient, opportunities passed by, zero_grad.
TRIALS = [
    (0, False, 0, None), (0, True, 2, "to_zero"), (1, False, 0, "to_zero"), (1, True, 0, None), (1, False, 2, None),
    (1, True, 7, "to_zero"),
]  # fmt: skip


def in_child_each(check: Callable[..., None], *arguments: Any) -> None:
    """Check all combinations of arguments in one process; the last line on stderr is the one that killed it."""

    def work() -> None:
        gc.freeze()  # or each collection would go through all that pytest holds
        unmap_what_is_freed()
        problems = []
        for each in itertools.product(*arguments):
            text = ", ".join(getattr(x, "__name__", str(x)) for x in each)
            os.write(2, f"{text}\n".encode())
            try:
                check(*each)
            except AssertionError as error:
                problems.append(f"{text}: {str(error).splitlines()[0]}")
        assert not problems, "\n".join(problems)

    in_child(work)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("trigger", TRIGGERS)
def test_memory_exchanged_during_a_step(name: str, trigger: str, path: str) -> None:
    for action, (steps, strided, *_) in itertools.product(ACTIONS, TRIALS):
        outcomes(path, name, action, steps, strided)  # where freed memory is not unmapped, which takes its time
    in_child_each(lambda action, each: trial(path, name, trigger, action, *each), ACTIONS, TRIALS)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_parameter_that_moves_up_in_its_list_takes_its_step(name: str) -> None:
    """To the place of one that was out of the ordinary, when that is taken out in the middle of a step."""
    usual, optimizer = (optimizer_of(fusedoptim, name, 1, strided=True) for _ in range(2))
    for each in (usual, optimizer):
        each.step()  # after which it is known which one that is
    first = optimizer.param_groups[0]["params"]
    last = first[2]
    with TRIGGERS["second rate"](lambda: first.__delitem__(slice(1, -1)), optimizer):
        optimizer.step()
    usual.step()
    assert len(first) == 2
    assert torch.equal(last, params_of(usual)[2])


@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_left_to_torch_steps_once(name: str) -> None:
    """However often the rest of the step is prepared anew."""
    results = []
    for exchanges in (0, 3):
        phase = Parameter(torch.ones(3, dtype=torch.complex64))
        first, second = Parameter(torch.ones(3)), Parameter(torch.ones(3))
        optimizer = getattr(fusedoptim, name)([{"params": [phase, first]}, {"params": [second]}], **OPTIONS[name])
        for p in (phase, first, second):
            p.grad = torch.ones_like(p)
        left = iter(range(exchanges))

        def exchange(p: Any = first, left: Any = left) -> None:
            if next(left, None) is not None:
                p.grad = p.grad.clone()

        with TRIGGERS["second rate"](exchange, optimizer):
            optimizer.step()
        assert next(left, None) is None
        results.append([x for p in (phase, first, second) for x in (p.detach(), *state_of(optimizer, p).values())])
    torch.testing.assert_close(*results, rtol=0, atol=0)


# Torch's own implementation, which takes the step where there is a mode, holds the tensors of the step.


class Meddling(TorchFunctionMode):
    """Acts once, at an operation of the step."""

    def __init__(self, act: Callable[[], Any], before: str) -> None:
        super().__init__()
        self.act: Callable[[], Any] | None = act
        self.before = before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == self.before and self.act is not None:
            act, self.act = self.act, None
            with torch._C.DisableTorchFunction():
                act()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", OPTIONS)
def test_exchanged_in_a_mode(name: str) -> None:
    """What comes of it is what comes of it with torch."""

    def check(action: Any, steps: int) -> None:
        results = []
        for module in (fusedoptim, torch.optim):
            optimizer = optimizer_of(module, name, 0)
            params = params_of(optimizer)
            for _ in range(steps):  # of torch's, so that the rest is equal to the bit
                with Meddling(lambda: None, ""):
                    optimizer.step()
            with Meddling(lambda o=optimizer, ps=params: action(o, ps), "add_"), suppress(*ERRORS):
                optimizer.step()
            results.append([x for p in params for x in (p.detach(), *state_of(optimizer, p).values())])
        torch.testing.assert_close(*results, rtol=0, atol=0)

    in_child_each(check, ACTIONS, [0, 1])


@pytest.mark.parametrize("name", OPTIONS)
def test_exchanged_in_a_mode_that_is_entered_while_a_rate_is_read(name: str) -> None:
    """With parameters so large that they are kept alive for the step, by a getter of torch's that runs the mode."""
    usual, optimizer = (getattr(fusedoptim, name)([Parameter(torch.ones(50_000))], **OPTIONS[name]) for _ in range(2))
    for each in (usual, optimizer):
        params_of(each)[0].grad = torch.ones(50_000)
        each.step()
    usual.step()
    (p,), group = params_of(optimizer), optimizer.param_groups[0]
    before, memory = p.detach().clone(), p.detach()

    def enter() -> None:
        group["lr"] = OPTIONS[name]["lr"]
        mode.__enter__()

    mode = Meddling(lambda: setattr(p, "data", p.data.clone()), "__get__")
    group["lr"] = Rate(enter, group["lr"])
    expected = params_of(usual)[0]
    try:
        optimizer.step()
    except RuntimeError as error:
        assert "was replaced while the step was being prepared" in str(error)  # noqa: PT017
        expected = before
    finally:
        mode.__exit__(None, None, None)
    torch.testing.assert_close(p, expected)
    assert torch.equal(memory, before)


def test_the_state_is_cleared_around_all_that_a_mode_sees() -> None:
    class Clearing(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            optimizer.state.clear()
            return func(*args, **(kwargs or {}))

    def work() -> None:
        nonlocal optimizer
        unmap_what_is_freed()
        optimizer = fusedoptim.Adam([Parameter(torch.zeros(5000)) for _ in range(50)])
        for p in params_of(optimizer):
            p.grad = torch.ones(5000)
        optimizer.step()
        for _ in range(3):
            with Clearing():
                optimizer.step()
        assert all(torch.isfinite(p).all() for p in params_of(optimizer))

    optimizer: Any = None
    in_child(work)


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("name", OPTIONS)
def test_exchanged_by_another_thread(name: str, path: str) -> None:
    """Each element makes none or some of the steps, and the process lives."""

    def check(action: Any) -> None:
        optimizer = optimizer_of(fusedoptim, name, 1, strided=True)
        params = params_of(optimizer)
        lists = [list(group["params"]) for group in optimizer.param_groups]
        stop = threading.Event()

        def meddle() -> None:
            while not stop.is_set():
                action(optimizer, params)
                for group, members in zip(optimizer.param_groups, lists, strict=True):
                    group["params"][:] = members

        other = threading.Thread(target=meddle)
        other.start()
        try:
            for _ in range(10):
                with suppress(*ERRORS):
                    optimizer.step()
        finally:
            stop.set()
            other.join()
        assert all(torch.isfinite(p).all() and p.abs().max() < 1e4 for p in params)

    # Torch's own steps are killed by p.grad = None in a second thread; its operators do not hold what .data exchanges,
    # and neither do the kernels while others run.
    left_out = ("_groups", "_no_gradients", *(("_data", "_first_data", "_state_data") if path != "native" else ()))
    in_child_each(check, [each for each in ACTIONS if each.__name__ not in left_out])
