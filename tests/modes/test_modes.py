"""Modes of torch that see or change operations: under them a step is torch's own, operation by operation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from helpers import Twins, of_names, params_of, set_grads, torch_steps
from mode_cases import makers, of_flags, of_steps_before, optimizer_of, without_questions
from outcomes import OPTIONS
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

path = helpers.path
pytestmark = pytest.mark.usefixtures("path", "one_thread")


class Operations(TorchDispatchMode):
    """Notes what is dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    """Notes which of torch's functions are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


of_modes = pytest.mark.parametrize("mode", [Operations, Functions])


def steps_and_zeroings(optimizer: Any, in_step: bool) -> None:
    """All that writes; ``in_step`` says whether gradients are reset within the step, or as with torch's after it."""
    optimizer.step()
    for zero_grad in ("to_zero", "to_none"):
        set_grads(optimizer, 2)
        if in_step:
            optimizer.step(zero_grad=zero_grad)
        else:
            optimizer.step()
            optimizer.zero_grad(set_to_none=zero_grad == "to_none")
    set_grads(optimizer, 3)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)


# Modes that see each operation.


@of_names
@of_flags
@of_modes
@of_steps_before
def test_a_mode_sees_torchs_operations(name: str, flags: dict[str, Any], mode: type[Any], steps_before: int) -> None:
    twins = Twins(name, {**OPTIONS[name], **flags}, theirs={})
    for _ in range(steps_before):
        for optimizer in twins:
            set_grads(optimizer, 1)
            optimizer.step()
    seen = []
    for optimizer in twins:
        set_grads(optimizer, 2)
        with mode() as noted:
            steps_and_zeroings(optimizer, optimizer is twins.ours)
        seen.append(without_questions(noted.names))
    assert seen[0] == seen[1] != []
    helpers.assert_optimizers_match(*twins)


@pytest.mark.parametrize("nest", [
    lambda inner: (Operations(), inner), lambda inner: (inner, Operations()),
    lambda inner: (Functions(), inner), lambda inner: (inner, Functions()),
    lambda inner: (inner, torch.device("cpu")), lambda inner: (torch.device("cpu"), inner),
], ids=["in dispatch", "around dispatch", "in function", "around function", "around device", "in device"])  # fmt: skip
@of_modes
def test_nested_modes(mode: type[Any], nest: Callable[[Any], tuple[Any, Any]]) -> None:
    seen = []
    for make in makers("Adam", {}):
        optimizer, weight = optimizer_of(make, steps_before=2)
        noted = mode()
        outer, inner = nest(noted)
        with outer, inner:
            optimizer.step()
        seen.append((without_questions(noted.names), weight.tolist()))
    assert seen[0] == seen[1]
    assert seen[0][0]


@of_names
@of_modes
def test_a_mode_entered_between_steps(name: str, mode: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps before and after it are the kernels'."""
    left = torch_steps(monkeypatch)
    twins = Twins(name, OPTIONS[name])
    twins.step(2)
    assert left == []
    with mode() as noted:
        set_grads(twins.ours, 9)
        twins.ours.step()
    assert "add_" in {title.removeprefix("aten.").split(".")[0] for title in noted.names}
    set_grads(twins.theirs, 9)
    twins.theirs.step()
    helpers.assert_optimizers_match(*twins)
    left.clear()
    twins.step(2)
    assert left == []


@of_modes
def test_a_mode_of_another_thread(mode: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    left = torch_steps(monkeypatch)
    entered, stepped = threading.Event(), threading.Event()
    noted = mode()

    def elsewhere() -> None:
        with noted:
            entered.set()
            stepped.wait(30)

    other = threading.Thread(target=elsewhere)
    other.start()
    try:
        assert entered.wait(30)
        Twins("Adam", OPTIONS["Adam"]).step(3)
    finally:
        stepped.set()
        other.join()
    assert left == []
    assert without_questions(noted.names) == []


def test_a_device_with_a_behaviour_of_its_own() -> None:
    """A subclass of the mode that is the default device may watch."""

    class Watching(torch.utils._device.DeviceContext):  # type: ignore[name-defined,misc]
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            noted.append(getattr(func, "__name__", str(func)))
            return super().__torch_function__(func, types, args, kwargs)

    seen = []
    for make in makers("Adam", {}):
        noted: list[str] = []
        optimizer, _ = optimizer_of(make)
        with Watching(torch.device("cpu")):
            optimizer.step()
        seen.append(without_questions(noted))
    assert seen[0] == seen[1] != []


# The default device is a mode as well, of factory functions: it changes nothing in a step.


@of_names
@of_steps_before
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.usefixtures("kernels_only")
def test_under_a_default_device_the_kernels_go_on(name: str, steps_before: int, device: str) -> None:
    twins = Twins(name, OPTIONS[name])
    twins.step(steps_before)
    for seed in (7, 8):
        for optimizer in twins:
            set_grads(optimizer, seed)
        twins.theirs.step()
        with torch.device(device):
            twins.ours.step()
        helpers.assert_optimizers_match(*twins)
    try:
        torch.set_default_device(device)
        twins.ours.step(zero_grad="to_zero")
    finally:
        torch.set_default_device(None)
    twins.theirs.step()
    twins.theirs.zero_grad(set_to_none=False)
    helpers.assert_optimizers_match(*twins)
    assert all(p.grad.device.type == "cpu" and not p.grad.any() for p in params_of(twins.ours))
