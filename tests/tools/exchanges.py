"""What users' code may exchange in the middle of a step, and what may run that code."""

from __future__ import annotations

import ctypes
import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from helpers import randn
from torch.nn import Parameter

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
