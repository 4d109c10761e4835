"""Changes that are made together or not at all, although a signal handler may raise between any two of them.

Python calls handlers, that of Ctrl-C for one, in the main thread and only between bytecodes, so never while a loop in C
calls functions in C.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from operator import methodcaller
from typing import Any

from torch import Tensor

from fusedoptim.torch_internals.private import private

_call = methodcaller("__call__")


def _copy_one_by_one(tensors: list[Tensor], copies: list[Tensor]) -> None:
    for tensor, copy in zip(tensors, copies, strict=True):
        tensor.copy_(copy)


_copy_each: Callable[..., Any] = private("torch._foreach_copy_", _copy_one_by_one)  # in one call, if it can be


class Transaction:
    """Undoes a sequence of changes if not all of them could be made.

    Attributes:
        add: Takes a function that undoes the next change. They are called in reverse order.
        roll_back: Takes no arguments and calls these functions, unless ``finish`` was called. It is no Python function:
            at the start of one, the handler of a second signal could raise.
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], Any]] = []
        self.add: Callable[[Callable[[], Any]], None] = partial(self._steps.insert, 0)
        self.roll_back: Callable[[], Any] = partial(deque, map(_call, self._steps), 0)

    def copy(self, tensors: list[Tensor]) -> None:
        """Save copies of tensors that are about to be written."""
        if tensors:
            self.add(partial(_copy_each, tensors, [x.clone() for x in tensors]))

    def finish(self, last: Iterable[Callable[[], Any]]) -> None:
        """Call functions written in C, after which nothing is undone any more."""
        deque(map(_call, [*last, self._steps.clear]), 0)
