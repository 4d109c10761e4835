"""The arena in which other packages step beside torch and us, the memory of their state, and a word for results."""

import math
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from benchmarks.peers.list import PEERS
from benchmarks.shared.arena import LR, Arena
from benchmarks.shared.correctness import Error
from benchmarks.shared.measure import Call
from benchmarks.shared.shapes import Model

LIMIT_S = 120.0
REASON_LENGTH = 240
WRONG_FROM = 1e-2  # as a share of the way that float64 went: no rounding is as large


class TookTooLongError(Exception):
    pass


@contextmanager
def given_up_after(seconds: float) -> Iterator[None]:
    """Raises `TookTooLongError` within it when the time is over; code that hangs in C is not interrupted."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("only the main thread can be interrupted")

    def give_up(number: int, frame: object) -> None:
        raise TookTooLongError(f"given up after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def shortened(text: str) -> str:
    """A message on one line, and not too long for a table."""
    line = " ".join(text.split())
    return line if len(line) <= REASON_LENGTH else line[: REASON_LENGTH - 1] + "…"


def tensors_in(state: Any) -> Iterator[Tensor]:
    """The plain tensors that an optimizer's state is made of."""
    for value in tree_leaves(state):
        if isinstance(value, Tensor) and is_traceable_wrapper_subclass(value):
            yield from tensors_in([getattr(value, name) for name in value.__tensor_flatten__()[0]])
        elif isinstance(value, Tensor):
            yield value


def state_bytes(optimizer: Any) -> int:
    """The memory of the state, in which what several parameters share counts once."""
    storages = (tensor.untyped_storage() for tensor in tensors_in(dict(optimizer.state)))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def judgement(correct: bool, overall: float, bits: int) -> str:
    """A word for the result of a peer of so much error, whose state has so many bits an element."""
    if correct:
        return "correct"
    if bits < 32:
        return "approximate"
    return "less exact" if overall < WRONG_FROM else "WRONG"


class PeerArena(Arena):
    """An arena for all of `PEERS`, each with one optimizer throughout: what its first step compiles stays compiled."""

    def __init__(self, model: Model, rule: str, limit_s: float = LIMIT_S) -> None:
        super().__init__(model, rule)
        self.limit_s = limit_s  # after which a check is given up
        self.optimizers: dict[str, Any] = {}  # that were built
        self.failures: dict[str, str] = {}  # why a peer could not take its steps
        self.calls: dict[str, Call] = {}

    def optimizer(self, variant: str, **settings: Any) -> Any:
        """An optimizer of the named peer, over the shared tensors as far as its state is made of such."""
        peer = PEERS[variant]
        if peer.variant:
            return super().optimizer(peer.variant)
        optimizer = peer.build(self.rule, self.params, LR[self.rule])
        if not peer.owns_state:
            for i, p in enumerate(self.params):
                shared = {peer.names.get(name, name): tensors[i] for name, tensors in self.state.items()}
                optimizer.state[p] = {**shared, **peer.also}
        return optimizer

    def step(self, variant: str) -> Call:
        """The step of a peer, the same one each time."""
        if variant not in self.calls:
            optimizer = self.optimizers[variant] = self.optimizer(variant)
            self.calls[variant] = torch.compile(optimizer.step) if PEERS[variant].compiled else optimizer.step
        return self.calls[variant]

    def error(self, variant: str, exact: Sequence[Tensor], start: Sequence[Tensor]) -> Error:
        """As in an `Arena`; a peer that fails gets NaN, which never is correct, and its reason."""
        try:
            with given_up_after(self.limit_s):
                return super().error(variant, exact, start)
        except Exception as exception:
            causes = (exception, exception.__cause__)  # the latter may be nearer to the point
            self.failures[variant] = shortened("; ".join(f"{type(e).__name__}: {e}" for e in causes if e is not None))
            return Error(math.nan, math.nan)
