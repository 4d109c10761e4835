"""Wherever the handler of a signal raises during a step, that of Ctrl-C for one, the step is whole or not taken."""

from __future__ import annotations

import gc
import random
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import helpers
import pytest
import torch
from helpers import SETTINGS, assert_optimizers_match, make_params, of_settings, params_of, set_grads

import fusedoptim
from fusedoptim.reference.executor import ReferenceExecutor

backend = helpers.backend
pytestmark = [pytest.mark.usefixtures("backend", "one_thread"), pytest.mark.timeout(600)]

MODES = [None, "to_zero", "to_none"]
PURE = (fusedoptim.reference.rules.__file__, fusedoptim.reference.ieee.__file__)
SHAPES = [(4, 33), (70,), (5, 3)]


class Stop(BaseException):
    """What the handler raises."""


def interrupted(step: Callable[[], Any], at: int) -> bool:
    """Raise before the bytecode number ``at`` of the step: everywhere a handler could be called, and more.

    Within the reference's pure functions it is not counted: they write to nothing.
    """
    left = at

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename in PURE:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                raise Stop
        return trace

    gc.disable()  # what others have registered to be called by the collector would be stopped, and Python pass it over
    sys.settrace(trace)
    try:
        step()
    except Stop:
        return True
    finally:
        sys.settrace(None)
        gc.enable()
    return False


def make(name: str, options: dict[str, Any]) -> Any:
    """Parameters two of which share memory; the one between has its first gradient later."""
    params = make_params(SHAPES)
    params[2].data = params[0].data.flatten()[:15].view(5, 3)
    return getattr(fusedoptim, name)(params, **options)


def next_grads(optimizer: Any, seed: int) -> None:
    set_grads(optimizer, seed)
    if seed < 2:
        params_of(optimizer)[1].grad = None


def assert_grads_match(one: Any, other: Any) -> None:
    for p, q in zip(params_of(one), params_of(other), strict=True):
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or torch.equal(p.grad, q.grad)


def was_taken(optimizer: Any, before: list[torch.Tensor]) -> bool:
    return not all(torch.equal(p, old) for p, old in zip(params_of(optimizer), before, strict=True))


def check(ours: Any, uninterrupted: Any, mode: str | None, stop: Callable[[Callable[[], Any]], bool]) -> bool:
    """Take one step that is stopped, and one that is not if the first one was taken; then compare. Was it stopped?"""
    before = [p.detach().clone() for p in params_of(ours)]
    versions = [p._version for p in params_of(ours)]
    updated = [p.grad is not None and p.numel() > 0 for p in params_of(ours)]
    stopped = stop(lambda: ours.step(zero_grad=mode))
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    taken = was_taken(ours, before)
    assert taken or stopped
    if taken:
        uninterrupted.step(zero_grad=mode)
        assert all(
            p._version > version
            for p, version, is_updated in zip(params_of(ours), versions, updated, strict=True)
            if is_updated
        )
    assert_optimizers_match(ours, uninterrupted, exact=True)
    assert_grads_match(ours, uninterrupted)
    return stopped


def positions(backend: str, draw: random.Random) -> Iterator[int]:
    """Every bytecode of the compiled path, and a sample of those of the reference, which has thousands."""
    at = 1
    while True:
        yield at
        at += 1 if backend == "native" else 1 + draw.randrange(60)


# Momentum in every mode, each of the others in one.
SETTINGS_AND_MODES = [(*SETTINGS[i], mode) for i, mode in zip((1, 1, 1, 0, 2, 3), 2 * MODES, strict=True)]
IDS = [f"{'momentum' if 'momentum' in options else name}-{mode}" for name, options, mode in SETTINGS_AND_MODES]


@pytest.mark.parametrize(("name", "options", "mode"), SETTINGS_AND_MODES, ids=IDS)
@pytest.mark.parametrize("steps_before", [0, 1], ids=["first", "second"])
def test_stopped_before_a_bytecode(
    name: str, options: dict[str, Any], mode: str | None, steps_before: int, backend: str
) -> None:
    """In the first step, and in one that finds the state of all parameters but one."""
    pair: list[Any] = []
    before: list[torch.Tensor] = []
    tries = 0
    for tries, at in enumerate(positions(backend, random.Random(1))):
        if not pair or was_taken(pair[0], before):
            pair = [make(name, options), make(name, options)]
            for optimizer in pair[: 2 * steps_before]:
                next_grads(optimizer, 0)
                optimizer.step()
            before = [p.detach().clone() for p in params_of(pair[0])]
        for optimizer in pair:
            next_grads(optimizer, 2 + tries % 10)
        if not check(*pair, mode, lambda step, at=at: interrupted(step, at)):  # type: ignore[misc]
            break
    assert tries > 30


@of_settings
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGALRM], ids=["SIGINT", "SIGALRM"])
def test_signals_at_random_moments(name: str, options: dict[str, Any], kind: signal.Signals, backend: str) -> None:
    draw = random.Random(2)
    ours, uninterrupted = make(name, options), make(name, options)
    error: Any = KeyboardInterrupt if kind == signal.SIGINT else Stop

    def handler(number: int, frame: Any) -> None:
        raise error

    def stop(step: Callable[[], Any]) -> bool:
        try:
            signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-6, 3e-4 if backend == "native" else 2e-2))
            step()
            while True:  # it may come late, when the step is done
                pass
        except error:
            return True

    def forward(number: int, frame: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    old = signal.signal(signal.SIGALRM, handler if kind == signal.SIGALRM else forward)
    old_interrupt = signal.signal(signal.SIGINT, handler) if kind == signal.SIGINT else None
    try:
        for seed in range(150 if backend == "native" else 25):
            mode = MODES[seed % 3]
            next_grads(ours, seed)
            next_grads(uninterrupted, seed)
            check(ours, uninterrupted, mode, stop)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        if old_interrupt is not None:
            signal.signal(signal.SIGINT, old_interrupt)
    ours.step()
    uninterrupted.step()
    assert_optimizers_match(ours, uninterrupted, exact=True)


@pytest.mark.parametrize("own", [{}, dict.fromkeys(("step", "exp_avg", "exp_avg_sq"))], ids=["empty", "of None"])
def test_stopped_when_all_is_written(own: dict[str, None], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the reference path, which writes in Python: scaled gradients, and state that was there and held nothing."""
    write = ReferenceExecutor._write

    def write_and_stop(self: Any, *args: Any) -> None:
        write(self, *args)
        raise Stop

    monkeypatch.setattr(ReferenceExecutor, "_write", write_and_stop)
    optimizer: Any = fusedoptim.Adam(make_params([(3,)]))
    set_grads(optimizer, 1)
    (p,) = params_of(optimizer)
    optimizer.state[p] = dict(own)
    optimizer.grad_scale = torch.tensor(2.0)
    before = [p.detach().clone(), p.grad.clone()]
    with fusedoptim.set_backend("reference"), pytest.raises(Stop):
        optimizer.step()
    assert optimizer.state[p] == own
    assert torch.equal(p, before[0])
    assert torch.equal(p.grad, before[1])


def test_groups_are_whole_while_torch_takes_a_part() -> None:
    """Parameters left to torch are updated as torch does it, but no interrupt may leave the groups without them."""
    params = make_params([(3,), (4,)])
    params[1].data = params[1].data.to(torch.complex64)
    optimizer = fusedoptim.SGD(params, lr=0.1, momentum=0.9)
    for at in range(1, 100_000, 37):
        for p in params:
            p.grad = torch.ones_like(p)
        stopped = interrupted(optimizer.step, at)
        torch.set_grad_enabled(True)  # torch's own decorators may leave it off
        assert [id(p) for p in params_of(optimizer)] == [id(p) for p in params]
        if not stopped:
            return
    pytest.fail("the step has no end")
