"""from_torch: the same object goes on, with our step, for everyone who holds it."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from helpers import assert_optimizers_match, make_params, of_names, of_settings, params_of, set_grads
from torch.optim import lr_scheduler

import fusedoptim
from fusedoptim.step import FusedStep

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend", "one_thread")

FLAGS: list[dict[str, Any]] = [{}, {"foreach": True}, {"foreach": False, "fused": False}, {"fused": True}]
of_flags = pytest.mark.parametrize("flags", FLAGS, ids=str)


def trained(name: str, options: dict[str, Any], steps: int = 2) -> Any:
    """One of torch; the last parameter has had no gradient yet."""
    optimizer = getattr(torch.optim, name)(make_params(), **options)
    for seed in range(steps):
        set_grads(optimizer, seed)
        params_of(optimizer)[2].grad = None
        optimizer.step()
    return optimizer


@of_settings
@of_flags
def test_training_goes_on_as_loaded_from_the_state_dict(
    name: str, options: dict[str, Any], flags: dict[str, Any], kernels_only: None
) -> None:
    theirs = trained(name, {**options, **flags})
    other = getattr(fusedoptim, name)(
        [p.detach().clone().requires_grad_() for p in params_of(theirs)], fused=flags.get("fused") or None
    )
    other.load_state_dict(copy.deepcopy(theirs.state_dict()))
    held = [theirs.state, theirs.param_groups, *theirs.param_groups, *params_of(theirs), *theirs.state.values()]
    held += [value for entry in theirs.state.values() for value in entry.values()]
    ours = fusedoptim.from_torch(theirs)
    assert ours is theirs
    assert type(ours) is getattr(fusedoptim, name)
    now = [ours.state, ours.param_groups, *ours.param_groups, *params_of(ours), *ours.state.values()]
    now += [value for entry in ours.state.values() for value in entry.values()]
    assert list(map(id, now)) == list(map(id, held))
    for options_ in (ours.defaults, *ours.param_groups):
        assert (options_["fused"], options_["foreach"]) == (flags.get("fused") or None, flags.get("foreach") and None)
    for seed in (5, 6):
        for optimizer in (ours, other):
            set_grads(optimizer, seed)
            optimizer.step()
        assert_optimizers_match(ours, other, exact=True)


def test_what_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = helpers.torch_steps(monkeypatch)
    optimizer = fusedoptim.from_torch(torch.optim.Adam(make_params(), capturable=True))
    set_grads(optimizer, 1)
    optimizer.step()
    assert optimizer.param_groups[0]["capturable"]
    assert not calls
    optimizer = fusedoptim.from_torch(torch.optim.SGD(make_params(), lr=0.1, differentiable=True, foreach=False))
    assert optimizer.param_groups[0]["differentiable"]
    for p in params_of(optimizer):
        p.requires_grad_(False)  # torch's own implementation writes to leaves
    set_grads(optimizer, 1)
    optimizer.step()
    assert calls
    assert fusedoptim.from_torch(torch.optim.SGD(make_params(), fused=True))._step_supports_amp_scaling
    assert fusedoptim.from_torch(optimizer) is optimizer


def test_groups_that_differ() -> None:
    params = make_params()
    theirs = torch.optim.Adam(
        [{"params": params[:1], "foreach": True}, {"params": params[1:2], "fused": False}, {"params": params[2:]}]
    )
    ours = fusedoptim.from_torch(theirs)
    assert [(g["foreach"], g["fused"]) for g in ours.param_groups] == [(None, None)] * 3
    ours.add_param_group({"params": make_params([(3,)])})
    assert ours.param_groups[-1]["fused"] is None


SCHEDULERS: dict[str, Callable[[Any], list[Any]]] = {
    "one": lambda o: [lr_scheduler.StepLR(o, 1)],
    "two": lambda o: [lr_scheduler.StepLR(o, 2), lr_scheduler.ExponentialLR(o, 0.9)],
    "chained": lambda o: [
        lr_scheduler.ChainedScheduler([lr_scheduler.ConstantLR(o, 0.5), lr_scheduler.ExponentialLR(o, 0.9)])
    ],
    "sequential": lambda o: [
        lr_scheduler.SequentialLR(o, [lr_scheduler.ConstantLR(o, 0.5), lr_scheduler.ExponentialLR(o, 0.9)], [2])
    ],
    "one cycle": lambda o: [lr_scheduler.OneCycleLR(o, 0.1, total_steps=10)],
    "plateau": lambda o: [lr_scheduler.ReduceLROnPlateau(o, patience=0)],
}


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
@of_names
def test_schedulers_go_on(name: str, make: Callable[[Any], list[Any]], kernels_only: None) -> None:
    options = {"lr": 0.1, "momentum": 0.9} if name == "SGD" else {"lr": 0.1}
    ours, theirs = (getattr(torch.optim, name)(make_params(), foreach=False, **options) for _ in range(2))
    schedulers = [make(ours), make(theirs)]
    fusedoptim.from_torch(ours)
    for seed in range(4):  # the warning that a scheduler went before the first step would be an error
        for optimizer, own in zip((ours, theirs), schedulers, strict=True):
            set_grads(optimizer, seed)
            optimizer.step()
            for scheduler in own:
                scheduler.step(*((1.0,) if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else ()))
        assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
        assert_optimizers_match(ours, theirs)
    for scheduler in schedulers[0]:
        assert scheduler.optimizer is ours


def test_a_scheduler_before_and_one_after() -> None:
    optimizer = torch.optim.Adam(make_params())
    first = lr_scheduler.StepLR(optimizer, 1)
    fusedoptim.from_torch(optimizer)
    assert optimizer.step._wrapped_by_lr_sched
    step = optimizer.step
    second = lr_scheduler.StepLR(optimizer, 1)
    assert optimizer.step is step  # recognised, and not wrapped again
    set_grads(optimizer, 1)
    optimizer.step(zero_grad="to_none")  # which torch's step does not know
    assert optimizer._opt_called
    assert params_of(optimizer)[0].grad is None
    first.step(), second.step()


def test_a_scheduler_still_notices_that_no_step_went_before() -> None:
    optimizer = torch.optim.Adam(make_params())
    scheduler = lr_scheduler.StepLR(optimizer, 1)
    fusedoptim.from_torch(optimizer)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        scheduler.step()


def test_the_wrapper_makes_no_cycle() -> None:
    """Without the collector of cycles the optimizer goes with its last holder, as before."""
    optimizer = torch.optim.Adam(make_params())
    lr_scheduler.StepLR(optimizer, 1)
    fusedoptim.from_torch(optimizer)
    alive = weakref.ref(optimizer)
    gc.disable()
    try:
        del optimizer
        assert alive() is None
    finally:
        gc.enable()


def _around(optimizer: Any) -> None:
    original = optimizer.step

    @functools.wraps(original)
    def step_of_mine(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    optimizer.step = step_of_mine


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_step_replaced_by_hand_is_refused(scheduled: bool) -> None:
    optimizer = torch.optim.Adam(make_params(), foreach=True)
    if scheduled:
        lr_scheduler.StepLR(optimizer, 1)
    _around(optimizer)
    before = dict(vars(optimizer))
    with pytest.raises(RuntimeError, match=r"was replaced by .*call from_torch before"):
        fusedoptim.from_torch(optimizer)
    assert type(optimizer) is torch.optim.Adam
    assert vars(optimizer) == before
    assert optimizer.param_groups[0]["foreach"]


def test_a_scheduler_around_a_step_replaced_by_hand_is_refused() -> None:
    optimizer = torch.optim.SGD(make_params())
    optimizer.step = (lambda self, closure=None: None).__get__(optimizer)
    lr_scheduler.StepLR(optimizer, 1)
    with pytest.raises(RuntimeError, match="was replaced"):
        fusedoptim.from_torch(optimizer)


def test_a_grad_scaler_goes_on() -> None:
    """It keeps a table by the identity of the optimizer."""
    for flags in ({}, {"fused": True}):
        results = []
        for convert in (True, False):
            optimizer = torch.optim.Adam(make_params(), **flags)
            scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
            scaler.scale(torch.ones(()))
            set_grads(optimizer, 1)
            scaler.unscale_(optimizer)
            if convert:
                fusedoptim.from_torch(optimizer)
            with pytest.raises(RuntimeError, match="already been called"):
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            set_grads(optimizer, 2)
            params_of(optimizer)[0].grad[0] = float("inf")
            scaler.step(optimizer)  # skipped
            scaler.update()
            results.append((optimizer, scaler.get_scale()))
        assert_optimizers_match(results[0][0], results[1][0], exact=False)
        assert results[0][1] == results[1][1] == 4.0


def test_hooks_and_closures_go_on() -> None:
    optimizer = torch.optim.SGD(make_params(), lr=0.1)
    called: list[str] = []
    optimizer.register_step_pre_hook(lambda o, a, k: called.append("pre"))
    optimizer.register_step_post_hook(lambda o, a, k: called.append("post"))
    optimizer.register_state_dict_post_hook(lambda o, d: called.append("saved"))
    fusedoptim.from_torch(optimizer)

    def closure() -> float:
        called.append("closure")
        set_grads(optimizer, 1)
        return 2.5

    assert optimizer.step(closure) == 2.5
    optimizer.state_dict()
    assert called == ["pre", "closure", "post", "saved"]


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("way", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_are_ours(way: Callable[[Any], Any], scheduled: bool) -> None:
    optimizer = trained("Adam", {"fused": True})
    if scheduled:
        lr_scheduler.StepLR(optimizer, 1)
    fusedoptim.from_torch(optimizer)
    other = way(optimizer)
    assert type(other) is fusedoptim.Adam
    assert other._step_supports_amp_scaling
    for each in (optimizer, other):
        set_grads(each, 7)
        each.step()
    assert_optimizers_match(other, optimizer, exact=True)


def test_labels_and_looks() -> None:
    theirs, made = torch.optim.AdamW(make_params()), fusedoptim.AdamW(make_params())
    with torch.profiler.profile() as theirs_profile:
        theirs.step()
    ours = fusedoptim.from_torch(theirs)
    assert repr(ours) == repr(made)
    with torch.profiler.profile() as profile:
        ours.step()
        ours.zero_grad()
    names = {event.name for event in profile.events()}
    assert {"Optimizer.step#AdamW.step", "Optimizer.zero_grad#AdamW.zero_grad"} <= names
    assert "Optimizer.step#AdamW.step" in {event.name for event in theirs_profile.events()}
    missing = set(vars(made)) - set(vars(ours)) - {"_kept_executor"}
    assert not missing


def _subclass() -> Any:
    class Mine(torch.optim.AdamW):
        pass

    return Mine(make_params())


def _namesake(base: Any) -> Any:
    return type("Adam", (base,), {"__module__": "x", "step": lambda self: None})


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "subclass": (_subclass, "Mine, a subclass .* derive it from fusedoptim.AdamW"),
    "a subclass of the same name": (lambda: _namesake(torch.optim.Adam)(make_params()), "x.Adam, a subclass"),
    "another library's of the same name": (lambda: _namesake(torch.optim.Optimizer)(make_params(), {}),
        "x.Adam; make a new one"),
    "a namesake of another rule": (lambda: _namesake(torch.optim.SGD)(make_params()), r"derive it from fusedoptim.SGD"),
    "another of torch": (lambda: torch.optim.LBFGS(make_params()), "LBFGS, which this package does not replace"),
    "scheduler": (lambda: lr_scheduler.StepLR(torch.optim.SGD(make_params()), 1), r"StepLR; pass its \.optimizer"),
    "another library's": (lambda: type("Lion", (torch.optim.Optimizer,), {"__module__": "x", "step": id})(
        make_params(), {}), "x.Lion; make a new one and load its state through fusedoptim.convert_state_dict"),
    "a model": (lambda: torch.nn.Linear(1, 1), "Linear; pass the optimizer"),
    "a class": (lambda: torch.optim.Adam, "type; pass the optimizer"),
    "None": (lambda: None, "NoneType; pass the optimizer"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "words"), WRONG.values(), ids=WRONG)
def test_anything_else_is_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(TypeError, match=f"exactly one of torch.optim's .*, got .*{words}"):
        fusedoptim.from_torch(make())


def test_every_class_of_this_package_can_be_made_of_torchs() -> None:
    for name in helpers.NAMES:
        with warnings.catch_warnings():
            optimizer = fusedoptim.from_torch(getattr(torch.optim, name)(make_params()))
        assert type(optimizer) is getattr(fusedoptim, name)
        assert isinstance(optimizer, FusedStep)
