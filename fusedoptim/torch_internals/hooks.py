"""Step hooks: called once, with the caller's arguments, however ``step`` was overridden, wrapped or assigned."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from fusedoptim.torch_internals.private import private

# The profiler label that torch's own C++ code uses: a twentieth of the cost of torch.profiler.record_function.
label: Callable[[str], Any] = private("torch._C._profiler._RecordFunctionFast", torch.profiler.record_function)
pre_hooks: dict[int, Any] = private("torch.optim.optimizer._global_optimizer_pre_hooks", {})
post_hooks: dict[int, Any] = private("torch.optim.optimizer._global_optimizer_post_hooks", {})


class _Thread(threading.local):
    """What is known in one thread: the optimizer whose overridden ``step`` has been called with the hooks."""

    hooked: Any = None


_thread = _Thread()


class _Hooked:
    """Marks, within a block, the optimizer whose hooks have been called."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def __enter__(self) -> None:
        self._before, _thread.hooked = _thread.hooked, self._optimizer

    def __exit__(self, *_: object) -> None:
        _thread.hooked = self._before


def _with_mark(step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(step)
    def marked(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _Hooked(self):
            return step(self, *args, **kwargs)

    return marked


def _take_step(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
    return optimizer._take_step(*args, **kwargs)


def step_with_hooks(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
    """The step with its hooks, as torch calls them, unless that has been done; with a label of a tenth of the cost."""
    if _thread.hooked is optimizer:
        with _Hooked(None):  # but a step that the closure takes has its own
            return optimizer._take_step(*args, **kwargs)
    with label(optimizer._step_label):
        args = (optimizer, *args)
        for hook in (*pre_hooks.values(), *optimizer._optimizer_step_pre_hooks.values()):
            changed = hook(optimizer, args, kwargs)
            if isinstance(changed, tuple) and len(changed) == 2:
                args, kwargs = changed
            elif changed is not None:
                raise RuntimeError(
                    f"{hook!r} must return None or a tuple of (new_args, new_kwargs), but got {changed}."
                )
        loss = _take_step(*args, **kwargs)
        optimizer._optimizer_step_code()
        call_post_hooks(optimizer, args, kwargs)
        return loss


def call_post_hooks(optimizer: Any, args: Any, kwargs: Any) -> None:
    """Those of the optimizer, then those of all."""
    for hook in (*optimizer._optimizer_step_post_hooks.values(), *post_hooks.values()):
        hook(optimizer, args, kwargs)


def hooked_once(func: Callable[..., Any]) -> Callable[..., Any]:
    """A ``step`` that is called with the hooks, unless these have been called."""
    with_hooks = Optimizer.profile_hook_step(_with_mark(func))

    @functools.wraps(func)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (func if _thread.hooked is self else with_hooks)(self, *args, **kwargs)

    return step
