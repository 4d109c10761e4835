"""Code that runs in the middle of a step and exchanges what the step is about to write to.

Each parameter then takes the step as it now is, or an error says that memory was exchanged and nothing was written. An
update never goes to memory that nobody owns any more: here freed memory is unmapped at once, so that writing to it
kills the process, and the memory of old tensors that somebody does hold is compared.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import helpers
import pytest
import torch
from helpers import in_child, params_of, randn
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

import fusedoptim

path = helpers.path
pytestmark = pytest.mark.usefixtures("path")

OPTIONS: dict[str, dict[str, Any]] = {"SGD": {"lr": 0.5, "momentum": 0.9}, "Adam": {"lr": 0.5}}
SIZE = 1200  # more than a page, which is enough for a mapping of its own
ERRORS = (RuntimeError, KeyError)  # the latter where an entry of the state was taken out


def unmap_what_is_freed() -> None:
    ctypes.CDLL(None).mallopt(-3, 4096)  # M_MMAP_THRESHOLD, which no longer rises when it is set


def optimizer_of(module: Any, name: str, steps: int, strided: bool = False) -> Any:
    first, second = ([Parameter(randn((SIZE,), seed + i)) for i in range(3)] for seed in (0, 5))
    optimizer = getattr(module, name)([{"params": first}, {"params": second}], **OPTIONS[name])
    for step in range(steps + 1):
        for i, p in enumerate([*first, *second]):
            p.grad = randn((SIZE,), 100 * step + i)
        if step < steps:
            optimizer.step()
    if strided:  # out of the ordinary, and taken by the kernels
        first[1].grad = first[1].grad.repeat_interleave(2)[::2]
    return optimizer


# What is exchanged. Values stay, so that it is known what a step on the new ones comes to.


def _data(optimizer: Any, params: list[Parameter]) -> None:
    for p in params:
        p.data = p.data.clone()


def _first_data(optimizer: Any, params: list[Parameter]) -> None:
    params[0].data = params[0].data.clone()


def _gradients(optimizer: Any, params: list[Parameter]) -> None:
    for p in params:
        p.grad = None if p.grad is None else p.grad.clone()


def _no_gradients(optimizer: Any, params: list[Parameter]) -> None:
    for p in params:
        p.grad = None


def _clear(optimizer: Any, params: list[Parameter]) -> None:
    optimizer.state.clear()


def _pop(optimizer: Any, params: list[Parameter]) -> None:
    for state in list(optimizer.state.values()):
        state.pop("exp_avg", None)
        state.pop("momentum_buffer", None)


def _state(optimizer: Any, params: list[Parameter]) -> None:
    for p in params:
        own = optimizer.state.get(p)
        if own:
            optimizer.state[p] = {k: v if v is None else v.clone() for k, v in own.items()}


def _state_tensors(optimizer: Any, params: list[Parameter]) -> None:
    for own in list(optimizer.state.values()):
        own.update({k: v if v is None else v.clone() for k, v in own.items()})


def _state_data(optimizer: Any, params: list[Parameter]) -> None:
    for own in list(optimizer.state.values()):
        for value in list(own.values()):
            if value is not None:
                value.data = value.data.clone()


def _lr(optimizer: Any, params: list[Parameter]) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 0.25


def _groups(optimizer: Any, params: list[Parameter]) -> None:
    optimizer.param_groups.clear()


def _params(optimizer: Any, params: list[Parameter]) -> None:
    for group in optimizer.param_groups:
        group["params"].clear()


ACTIONS: list[Any] = [
    _data, _first_data, _gradients, _no_gradients, _clear, _pop, _state, _state_tensors, _state_data, _lr, _groups,
    _params,
]  # fmt: skip


# What runs the code.


def within_a_step() -> bool:
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "step" and "optim" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


class Cycle:
    """Garbage that only the collector finds."""

    def __init__(self, on_del: Callable[[], Any] | None = None) -> None:
        self.cycle, self.on_del = self, on_del

    def __del__(self) -> None:
        if self.on_del is not None:
            self.on_del()


@contextmanager
def in_collections(act: Callable[[], Any], how: str) -> Iterator[None]:
    """At each collection within a step, of which there are as many as can be."""
    kept = []
    busy = False

    def callback(phase: str, info: Any) -> None:
        nonlocal busy
        if busy or phase != "start" or not within_a_step():
            return
        busy = True
        if how == "callback":
            act()
        elif how == "__del__":
            Cycle(act)
        else:
            kept.append(weakref.ref(Cycle(), lambda _: act()))
        busy = False

    usual = gc.get_threshold()
    gc.callbacks.append(callback)
    gc.set_threshold(1, 1 << 30, 1 << 30)
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.callbacks.remove(callback)


class Rate:
    """A learning rate that runs code when it is read."""

    def __init__(self, act: Callable[[], Any], value: float) -> None:
        self.act, self.value = act, value

    def __float__(self) -> float:
        self.act()
        return self.value


@contextmanager
def in_rate(act: Callable[[], Any], group: dict[str, Any]) -> Iterator[None]:
    group["lr"] = Rate(act, group["lr"])
    yield


TRIGGERS: dict[str, Callable[[Any, Any], AbstractContextManager[None]]] = {
    "gc callback": lambda act, o: in_collections(act, "callback"),
    "__del__": lambda act, o: in_collections(act, "__del__"),
    "weakref": lambda act, o: in_collections(act, "weakref"),
    "first rate": lambda act, o: in_rate(act, o.param_groups[0]),
    "second rate": lambda act, o: in_rate(act, o.param_groups[1]),
}


# What may come of it.


def values(tensors: Any) -> list[Tensor]:
    return [x.detach().clone() for x in tensors]


def state_of(optimizer: Any, p: Any) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in (optimizer.state.get(p) or {}).items() if value is not None}


def is_one_of(value: Tensor, *others: Tensor | None) -> bool:
    return any(other is not None and torch.equal(value, other) for other in others)


def trial(name: str, trigger: str, action: Any, steps: int, strided: bool, skipped: int, zero_grad: str | None) -> None:
    """Let the action happen once, at an opportunity after so many others; then look at all there is."""
    unmap_what_is_freed()
    usual, after_action = (optimizer_of(fusedoptim, name, steps, strided) for _ in range(2))
    usual.step()
    params = params_of(after_action)
    action(after_action, params)
    try:
        after_action.step()
    except KeyError:
        after_action, params = usual, params_of(usual)
    usual_params = params_of(usual)

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
        exchanged = i in old and old[i].data_ptr() != p.data_ptr()
        grad_exchanged = i in old and (p.grad is None or old_grads[i].data_ptr() != p.grad.data_ptr())
        now = state_of(optimizer, p)
        if error is not None:
            assert torch.equal(p, was[i]), f"parameter {i} was written to, and then {error!r}"
            assert all(torch.equal(value, state_was[i][key]) for key, value in now.items()), f"state of {i}: {error!r}"
        else:
            assert is_one_of(p, usual_params[i], params[i]), f"parameter {i} took no step, or another"
            expected = [state_of(usual, usual_params[i]), state_of(after_action, params[i])]
            for key, value in now.items():
                assert is_one_of(value, *(each.get(key) for each in expected)), f"{key} of {i}"
        if exchanged:
            assert torch.equal(old[i], was[i]), f"the old memory of parameter {i} was written to"
        if grad_exchanged and zero_grad != "to_none":
            assert torch.equal(old_grads[i], grads_were[i]), f"the old gradient of parameter {i} was written to"


# Steps before, a strided gradient, opportunities passed by, zero_grad.
TRIALS = [
    (0, False, 0, None), (0, True, 2, "to_zero"), (1, False, 0, "to_zero"), (1, True, 0, None), (1, False, 2, None),
    (1, True, 7, "to_zero"),
]  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("trigger", TRIGGERS)
def test_memory_exchanged_during_a_step(name: str, trigger: str, action: Any) -> None:
    def work() -> None:
        gc.freeze()  # or each collection would go through all that pytest holds
        for each in TRIALS:
            try:
                trial(name, trigger, action, *each)
            except AssertionError as error:
                raise AssertionError(f"{each}: {error}") from None

    in_child(work)


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
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("steps", [0, 1])
def test_exchanged_in_a_mode(name: str, action: Any, steps: int) -> None:
    """What comes of it is what comes of it with torch."""

    def work() -> None:
        unmap_what_is_freed()
        results = []
        for module in (fusedoptim, torch.optim):
            optimizer = optimizer_of(module, name, 0)
            params = params_of(optimizer)
            for _ in range(steps):  # of torch's, so that the rest is equal to the bit
                with Meddling(lambda: None, ""):
                    optimizer.step()
            with Meddling(lambda o=optimizer, ps=params: action(o, ps), "add_"):
                optimizer.step()
            results.append([x for p in params for x in (p.detach(), *state_of(optimizer, p).values())])
        torch.testing.assert_close(*results, rtol=0, atol=0)

    in_child(work)


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
@pytest.mark.parametrize("action", [_data, _gradients, _clear, _state, _state_tensors, _state_data, _params])
def test_exchanged_by_another_thread(name: str, action: Any) -> None:
    """Each element makes none or some of the steps, and the process lives."""

    def work() -> None:
        unmap_what_is_freed()
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
            for _ in range(30):
                with suppress(*ERRORS):
                    optimizer.step()
        finally:
            stop.set()
            other.join()
        assert all(torch.isfinite(p).all() and p.abs().max() < 1e4 for p in params)

    in_child(work)
