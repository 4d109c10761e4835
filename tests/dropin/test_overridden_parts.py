"""What the ``step`` of torch calls has its effect, overridden in a subclass, on a class or on one optimizer."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from helpers import assert_optimizers_match, everything_of, make_params, of_names, params_of, set_grads
from outcomes import OPTIONS

import fusedoptim

path = helpers.path
pytestmark = pytest.mark.usefixtures("path", "one_thread")

MODULES: list[Any] = [fusedoptim, torch.optim]
Override = Callable[[Callable[..., Any]], Callable[..., Any]]  # from the original to what replaces it


# Of _init_group, which makes the state and gathers the tensors.


def other_initial_state(original: Any) -> Any:
    def _init_group(self: Any, group: Any, params: Any, *lists: Any) -> Any:
        for p in group["params"]:
            if p.grad is None or self.state[p]:
                continue
            if "betas" in group:
                self.state[p] = {
                    "step": torch.tensor(10.0),
                    **{k: torch.ones_like(p) for k in ("exp_avg", "exp_avg_sq")},
                }
            else:
                self.state[p] = {"momentum_buffer": torch.ones_like(p)}
        return original(self, group, params, *lists)

    return _init_group


def leaves_parameters_out(original: Any) -> Any:
    def _init_group(self: Any, group: Any, params: Any, *lists: Any) -> Any:
        return original(self, {**group, "params": [p for p in group["params"] if p.dim() < 2]}, params, *lists)

    return _init_group


def changes_gradients(original: Any) -> Any:
    def _init_group(self: Any, group: Any, params: Any, grads: Any, *lists: Any) -> Any:
        result = original(self, group, params, grads, *lists)
        grads[:] = [grad - grad.mean() if grad.dim() > 1 else grad for grad in grads]
        return result

    return _init_group


def counts_on_the_optimizer(original: Any) -> Any:
    """The optimizer that it is called on is the one that the user has, not a copy."""

    def _init_group(self: Any, group: Any, *lists: Any) -> Any:
        seen = vars(self).setdefault("seen", [])
        seen.append((self.param_groups[len(seen) % 2] is group, len(group["params"]), id(self) == self.own_id))
        group["lr"] *= 0.5
        return original(self, group, *lists)

    return _init_group


# Of what is called without arguments. (Torch 2.10 calls one by the name _cuda_graph_capture_health_check.)


def halves_the_rate(original: Any) -> Any:
    def replacement(self: Any) -> Any:
        for group in self.param_groups:
            group["lr"] = group["lr"] * 0.5
        return original(self)

    return replacement


WITHOUT_ARGUMENTS = [
    name
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check", "_optimizer_step_code")
    if hasattr(torch.optim.Optimizer, name)
]
OVERRIDES: dict[str, tuple[str, Override]] = {
    "initial state": ("_init_group", other_initial_state),
    "parameters left out": ("_init_group", leaves_parameters_out),
    "gradients": ("_init_group", changes_gradients),
    "the optimizer itself": ("_init_group", counts_on_the_optimizer),
    **{name: (name, halves_the_rate) for name in WITHOUT_ARGUMENTS},
}


# Where the override is.


def in_a_subclass(base: Any, part: str, override: Override, patch: Any) -> tuple[Any, Any]:
    return type("Sub", (base,), {part: override(getattr(base, part))}), lambda optimizer: None


def in_a_mixin(base: Any, part: str, override: Override, patch: Any) -> tuple[Any, Any]:
    class Mixin:
        pass

    sub = type("Sub", (Mixin, base), {})
    setattr(Mixin, part, override(getattr(base, part)))
    return sub, lambda optimizer: None


def in_a_class_given_later(base: Any, part: str, override: Override, patch: Any) -> tuple[Any, Any]:
    sub = type("Sub", (base,), {part: override(getattr(base, part))})
    return base, lambda optimizer: setattr(optimizer, "__class__", sub)


def on_the_instance(base: Any, part: str, override: Override, patch: Any) -> tuple[Any, Any]:
    method = override(getattr(base, part))
    return base, lambda optimizer: setattr(optimizer, part, types.MethodType(method, optimizer))


def on_the_class(base: Any, part: str, override: Override, patch: Any) -> tuple[Any, Any]:
    sub = type("Sub", (base,), {})
    return sub, lambda optimizer: setattr(sub, part, override(getattr(base, part)))


def on_our_class(base: Any, part: str, override: Override, patch: Any) -> tuple[Any, Any]:
    return base, lambda optimizer: patch.setattr(base, part, override(getattr(base, part)))


def on_torchs_class(base: Any, part: str, override: Override, patch: Any) -> tuple[Any, Any]:
    """Which ours inherits from: a library may patch it before it has heard of us."""
    torchs = getattr(torch.optim, base.__name__)
    return base, lambda optimizer: patch.setattr(torchs, part, override(getattr(torchs, part)))


PLACES: list[Any] = [
    in_a_subclass, in_a_mixin, in_a_class_given_later, on_the_instance, on_the_class, on_our_class, on_torchs_class,
]  # fmt: skip


def trained(module: Any, name: str, override: Any, place: Any, steps_before: int, in_step: bool) -> Any:
    """Steps before the override is there, where that can be, steps with it, and in the end one that zeroes."""
    with pytest.MonkeyPatch.context() as patch:
        cls, change = place(getattr(module, name), *override, patch)
        optimizer = cls(make_params([(4, 33), (), (7,)]), **OPTIONS[name])
        optimizer.add_param_group({"params": make_params([(3, 2)]), "lr": 0.02})
        optimizer.own_id = id(optimizer)
        for seed in range(steps_before):
            set_grads(optimizer, seed)
            optimizer.step()
        change(optimizer)
        for seed in (11, 12):
            set_grads(optimizer, seed)
            optimizer.step()
        if in_step:
            optimizer.step(zero_grad="to_zero")
        else:
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    return optimizer


@of_names
@pytest.mark.parametrize("override", OVERRIDES.values(), ids=OVERRIDES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("steps_before", [0, 2])
def test_an_override_has_its_effect(name: str, override: Any, place: Any, steps_before: int) -> None:
    ours, theirs = (trained(module, name, override, place, steps_before, module is fusedoptim) for module in MODULES)
    assert_optimizers_match(ours, theirs)
    assert vars(ours).get("seen") == vars(theirs).get("seen")
    assert not any(p.grad.any() for p in params_of(ours))
    assert [group["lr"] for group in ours.param_groups] == [group["lr"] for group in theirs.param_groups]


class _RefusalError(Exception):
    pass


@pytest.mark.parametrize("part", ["_init_group", *WITHOUT_ARGUMENTS])
@pytest.mark.parametrize("place", [in_a_subclass, on_the_instance])
def test_an_override_that_raises(part: str, place: Any) -> None:
    """Before anything is written, but what is called after the update."""

    def refuse(self: Any, *_: Any) -> None:
        raise _RefusalError

    results = []
    for module in MODULES:
        cls, change = place(module.Adam, part, lambda _: refuse, None)
        optimizer = cls(make_params())
        change(optimizer)
        set_grads(optimizer, 1)
        before, raised = everything_of(optimizer), False
        try:
            optimizer.step()
        except _RefusalError:
            raised = True
        results.append((raised, everything_of(optimizer) == before))
    assert results[0] == results[1]


class _Unrelated(fusedoptim.Adam):
    """Overrides what no step calls."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def add_param_group(self, param_group: Any) -> None:
        super().add_param_group(param_group)

    def state_dict(self) -> Any:
        return super().state_dict()

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return super().step(closure)


@pytest.mark.usefixtures("kernels_only")
def test_a_subclass_that_overrides_something_else_keeps_the_kernels() -> None:
    optimizer = _Unrelated(make_params())
    for seed in range(3):
        set_grads(optimizer, seed)
        optimizer.step()
    assert all(state["step"] == 3 for state in optimizer.state.values())


@pytest.mark.parametrize("set_to_none", [False, True])
@pytest.mark.parametrize("on_instance", [False, True])
def test_an_overridden_zero_grad_is_what_the_step_does(set_to_none: bool, on_instance: bool) -> None:
    """``step(zero_grad=...)`` is ``step()`` followed by ``zero_grad()``, whatever that is."""

    def keep_half(self: Any, set_to_none: bool = True) -> None:
        with torch.no_grad():
            for p in params_of(self):
                p.grad.mul_(0.5 if set_to_none else 0.25)

    cls = fusedoptim.Adam if on_instance else type("Sub", (fusedoptim.Adam,), {"zero_grad": keep_half})
    optimizers = [cls(make_params()) for _ in range(2)]
    for optimizer in optimizers:
        if on_instance:
            optimizer.zero_grad = types.MethodType(keep_half, optimizer)
        set_grads(optimizer, 1)
    for _ in range(3):
        optimizers[0].step(zero_grad="to_none" if set_to_none else "to_zero")
        optimizers[1].step()
        optimizers[1].zero_grad(set_to_none)
    assert_optimizers_match(*optimizers, exact=True)
    for p, q in zip(*map(params_of, optimizers), strict=True):
        assert torch.equal(p.grad, q.grad)
