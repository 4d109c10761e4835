"""Who interrupts a step: contexts in which a case of ``meddling.py`` is changed while one is prepared and taken."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import hostile
import mutations
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class Stop(Exception):  # noqa: N818
    """Raised by a signal's handler, as Ctrl-C is."""


def function_mode(case: Any) -> AbstractContextManager[Any]:
    """Around every function of torch."""

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            case.meddle()
            result = func(*args, **(kwargs or {}))
            case.meddle()
            return result

    return Mode()


def dispatch_mode(case: Any) -> AbstractContextManager[Any]:
    """Around every operator of torch."""

    class Mode(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            case.meddle()
            result = func(*args, **(kwargs or {}))
            case.meddle()
            return result

    return Mode()


@contextmanager
def thread(case: Any) -> Iterator[None]:
    """Whenever the step lets others run."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            case.meddle()
            time.sleep(0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        over.set()
        worker.join()
        sys.setswitchinterval(interval)


@contextmanager
def collections(case: Any) -> Iterator[None]:
    """At every collection of garbage, which any new object may start."""
    thresholds = gc.get_threshold()

    def callback(phase: str, info: Any) -> None:
        case.meddle()

    gc.callbacks.append(callback)
    gc.set_threshold(case.draw.choice([1, 3, 20]), 2, 50)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(callback)


class Garbage:
    """Meddles when it is collected, and leaves new garbage."""

    def __init__(self, case: Any, cyclic: bool) -> None:
        self.case = case
        self.itself = self if cyclic else None

    def __del__(self) -> None:
        if not self.case.meddling:
            Garbage(self.case, cyclic=True)
        self.case.meddle()


def tensors_of(case: Any) -> list[Any]:
    """The parameters, the state tensors, and the gradients where torch bears it (`mutations.LOOKING_AT_GRADS`)."""
    params = case.params()
    own = [x for entry in case.state.values() for x in entry.values()]
    grads = [] if set(case.mutations) & set(mutations.LOOKING_AT_GRADS) else [p.grad for p in params]
    return [*params, *own, *(grad for grad in grads if grad is not None)]


@contextmanager
def finalizers(case: Any) -> Iterator[None]:
    """When garbage is collected, and when a tensor goes to which some is attached."""
    thresholds = gc.get_threshold()
    for x in tensors_of(case):
        if case.draw.random() < 0.3:
            x.note = Garbage(case, cyclic=False)
    garbage = [Garbage(case, cyclic=True) for _ in range(20)]
    del garbage
    gc.set_threshold(case.draw.choice([1, 5]), 2, 50)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


@contextmanager
def weak_references(case: Any) -> Iterator[None]:
    """When a tensor goes."""
    references = [weakref.ref(x, lambda _: case.meddle()) for x in tensors_of(case)]
    yield
    del references


@contextmanager
def signals(case: Any) -> Iterator[None]:
    """A few thousand times a second, between two bytecodes; once the handler may raise."""
    may_raise = [case.draw.random() < 0.3]

    def handler(number: int, frame: Any) -> None:
        if case.meddling:
            return
        case.meddle()
        if may_raise and may_raise.pop():
            raise Stop

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 1e-4, case.draw.choice([1e-4, 5e-4]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def numbers(case: Any) -> Iterator[None]:
    """When an option is read; and it may be no number."""
    for group in case.groups:
        group[case.draw.choice(["lr", "weight_decay", "maximize"])] = hostile.Number(case)
    yield


@contextmanager
def hooks(case: Any) -> Iterator[None]:
    """Before the step, and after it."""
    handles = [
        case.optimizer.register_step_pre_hook(lambda *_: case.meddle()),
        case.optimizer.register_step_post_hook(lambda *_: case.meddle()),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _meddling(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any) -> Any:
        if self.case is not None:
            self.case.meddle()
        return getattr(super(State, self), name)(*args)

    return method


class State(defaultdict):  # type: ignore[type-arg]
    """A mapping that meddles when it is asked."""

    case: Any = None
    __getitem__, __contains__, __setitem__ = map(_meddling, ("__getitem__", "__contains__", "__setitem__"))
    get, __iter__, items, update = map(_meddling, ("get", "__iter__", "items", "update"))


@contextmanager
def mappings(case: Any) -> Iterator[None]:
    """When the state, an entry of it, a group or a list of parameters is read."""
    kinds = case.draw.sample(["state", "entries", "groups", "params"], case.draw.choice([1, 2, 4]))
    if "entries" in kinds:
        for p, entry in list(case.state.items()):
            case.state[p] = hostile.Group(entry)
            case.state[p].case = case
    if "state" in kinds:
        case.optimizer.state = State(dict, case.state)
        case.optimizer.state.case = case
    for i, group in enumerate(case.groups):
        if "params" in kinds:
            group["params"] = hostile.Params(group["params"])
            group["params"].case = case
        if "groups" in kinds:
            case.groups[i] = hostile.Group(group)
            case.groups[i].case = case
    yield


ALL = [
    function_mode, dispatch_mode, thread, collections, finalizers, weak_references, signals, numbers, hooks, mappings
]  # fmt: skip
BY_TORCH = [function_mode, dispatch_mode, mappings]
"""Where torch's own implementation takes the step, for it to be seen or asked."""
