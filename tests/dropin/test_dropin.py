"""fusedoptim in the place of torch.optim: names, constructors, flags, closures, hooks, schedules."""

from __future__ import annotations

import inspect
from typing import Any

import helpers
import pytest
import torch
from helpers import (
    NAMES,
    OF_TORCH,
    SETTINGS,
    SHAPES,
    Twins,
    assert_optimizers_match,
    make_params,
    of_all_names,
    of_names,
    of_settings,
    params_of,
    randn,
    set_grads,
    torch_steps,
)
from torch.nn import Parameter
from torch.optim.optimizer import register_optimizer_step_post_hook

import fusedoptim
from fusedoptim.settings import DEFAULTS

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend")


def test_every_public_name_of_torch_optim_is_here() -> None:
    names = {name for name in vars(torch.optim) if not name.startswith("_")}
    assert not names - set(vars(fusedoptim))
    assert set(torch.optim.__all__) <= set(fusedoptim.__all__)
    for name in set(torch.optim.__all__) - set(OF_TORCH):
        assert getattr(fusedoptim, name) is getattr(torch.optim, name)


@of_all_names
def test_class_has_the_constructor_of_torch(name: str) -> None:
    ours, theirs = getattr(fusedoptim, name), getattr(torch.optim, name)
    assert issubclass(ours, theirs)
    assert ours.__name__ == name
    mine, torchs = inspect.signature(ours), inspect.signature(theirs)
    added = [mine.parameters[x] for x in DEFAULTS]
    assert list(mine.parameters.values()) == [*torchs.parameters.values(), *added]
    assert {parameter.kind for parameter in added} == {inspect.Parameter.KEYWORD_ONLY}
    assert mine.return_annotation == torchs.return_annotation
    assert ours.__doc__.startswith(theirs.__doc__[:100])
    assert isinstance(fusedoptim.AdamW(make_params()), fusedoptim.Adam) is issubclass(
        torch.optim.AdamW, torch.optim.Adam
    )


@of_settings
def test_groups_defaults_and_repr_are_those_of_torch(name: str, options: dict[str, Any]) -> None:
    groups = [{"params": make_params()[:2], "lr": 0.5}, {"params": make_params()[2:]}]
    ours, theirs = (getattr(module, name)(groups, **options) for module in (fusedoptim, torch.optim))
    assert ours.defaults == theirs.defaults
    assert list(ours.param_groups[0]) == list(theirs.param_groups[0])
    assert repr(ours) == repr(theirs)


P, Q = (Parameter(torch.ones(1)) for _ in range(2))
BAD_INPUTS: list[tuple[Any, dict[str, Any]]] = [
    (P, {}), ([P, P], {}), ([{"params": P}, {"params": P}], {}), ([("weight", P), Q], {}), ([], {}), ([1, 2], {}),
    ([{"params": [P]}, {"params": [("weight", Q)]}], {}), ([{"params": {P}}], {}), ([P * 2], {}), ([{"lr": 1.0}], {}),
    *(([P], options) for options in (
        {"lr": torch.tensor([0.1, 0.1])}, {"lr": -1.0}, {"lr": "fast"}, {"weight_decay": -1}, {"momentum": -0.5},
        {"nesterov": True}, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, {"betas": (1.0, 0.0)},
        {"betas": (0.0, 1.0)}, {"betas": (0.9, torch.tensor(0.9))}, {"betas": (torch.tensor(0.9), 0.9)},
        {"betas": (torch.tensor(0.9), torch.tensor(0.9)), "foreach": True}, {"lr": torch.tensor(0.1), "foreach": True},
        {"betas": (torch.tensor([0.9, 0.9]), torch.tensor(0.9))}, {"eps": -1.0}, {"unknown": 1}, {"betas": 0.9},
        {"fused": True, "foreach": True}, {"fused": True, "differentiable": True},
    )),
]  # fmt: skip


@of_names
@pytest.mark.parametrize(("params", "options"), BAD_INPUTS, ids=lambda x: "".join(str(x).split())[:60])
def test_bad_input_raises_what_torch_raises(name: str, params: Any, options: dict[str, Any]) -> None:
    def outcome(module: Any) -> Any:
        try:
            return repr(getattr(module, name)(params, **options))
        except Exception as error:
            return type(error), str(error)

    assert outcome(fusedoptim) == outcome(torch.optim)


FLAGS: list[dict[str, Any]] = [
    {}, {"foreach": True}, {"foreach": False}, {"fused": True}, {"fused": False}, {"foreach": False, "fused": True},
    {"foreach": True, "fused": False},
]  # fmt: skip


@of_settings
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_flags(name: str, options: dict[str, Any], flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    left_to_torch = torch_steps(monkeypatch)
    Twins(name, {**options, **flags}, theirs={"fused": False, "foreach": False}).step(3)
    assert bool(left_to_torch) == (flags.get("foreach") is True or flags.get("fused") is False)


def test_capturable_on_cpu_is_taken_by_the_kernels() -> None:
    twins = Twins("Adam", {"lr": 0.01}, theirs={"foreach": False})
    twins.ours.param_groups[0]["capturable"] = True
    twins.step(3)


@pytest.mark.parametrize(("name", "options"), [("SGD", {"momentum": 0.9}), ("Adam", {}), ("AdamW", {})])
def test_gradients_flow_through_a_differentiable_step(name: str, options: dict[str, Any]) -> None:
    results = []
    for module in (fusedoptim, torch.optim):
        start = torch.ones(3, requires_grad=True)
        weight = start.clone()
        optimizer = getattr(module, name)([Parameter(torch.ones(3))], lr=0.1, differentiable=True, **options)
        optimizer.param_groups[0]["params"] = [weight]
        weight.retain_grad()
        weight.grad = 2 * start
        optimizer.step()
        weight.sum().backward()
        results.append((weight.detach(), start.grad))
    assert (results[0][1] != 0).all()
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@of_names
def test_groups_with_different_settings(name: str) -> None:
    def groups() -> list[dict[str, Any]]:
        settings: list[dict[str, Any]] = [
            {"lr": 0.5}, {"weight_decay": 0.1}, {"maximize": True, "lr": torch.tensor(0.2)}, {"fused": False},
            {"momentum": 0.5} if name == "SGD" else {"betas": (0.5, 0.6), "amsgrad": True}, {"foreach": True},
        ]  # fmt: skip
        return [{"params": make_params(), **extra} for extra in settings]

    Twins(name, {"lr": 0.01}, groups).step(3)


def test_closure_is_called_once_with_gradients_enabled() -> None:
    twins = Twins("SGD", {"lr": 0.1})
    for optimizer in twins:
        seen = []

        def closure(optimizer: Any = optimizer, seen: list[bool] = seen) -> torch.Tensor:
            seen.append(torch.is_grad_enabled())
            optimizer.zero_grad()
            loss = sum((p * p).sum() for p in params_of(optimizer))
            loss.backward()
            return loss

        with torch.no_grad():
            losses = [optimizer.step(closure), optimizer.step(closure=closure)]
        assert seen == [True, True]
        assert losses[1] < losses[0]
    assert_optimizers_match(*twins)


def test_closure_that_raises_leaves_no_trace() -> None:
    (p,) = params = [Parameter(torch.ones(3))]
    p.grad = torch.ones(3)
    with pytest.raises(ZeroDivisionError):
        fusedoptim.SGD(params, lr=0.1).step(lambda: 1 / 0)
    assert p.tolist() == [1, 1, 1]


@of_names
@pytest.mark.parametrize("mixed", [False, True], ids=["kernels", "partly torch"])
def test_hooks_are_called_once_per_step(name: str, mixed: bool) -> None:
    set_grads(other := getattr(torch.optim, name)(make_params()), 1)
    other.step()  # torch patches the step of a class with the first instance
    optimizer = getattr(fusedoptim, name)([{"params": make_params()}, {"params": make_params(), "foreach": mixed}])
    set_grads(optimizer, 1)
    called: list[Any] = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: called.append(("pre", o, args[1:], kwargs)))
    optimizer.register_step_post_hook(lambda o, args, kwargs: called.append(("post", o, args[1:], kwargs)))
    everywhere = register_optimizer_step_post_hook(lambda o, *_: called.append(("all", o, (), {})))
    try:
        optimizer.step(zero_grad="to_none")
    finally:
        everywhere.remove()
    options = {"zero_grad": "to_none"}
    assert called == [("pre", optimizer, (), options), ("post", optimizer, (), options), ("all", optimizer, (), {})]


def test_a_pre_hook_may_change_the_arguments() -> None:
    optimizer = fusedoptim.SGD(make_params())
    set_grads(optimizer, 1)
    optimizer.register_step_pre_hook(lambda o, args, kwargs: (args, {**kwargs, "zero_grad": "to_none"}))
    optimizer.step()
    assert all(p.grad is None for p in params_of(optimizer))


@of_settings
def test_missing_late_and_frozen_gradients(name: str, options: dict[str, Any]) -> None:
    twins = Twins(name, options)
    twins.do(lambda optimizer: optimizer.step())  # nobody has a gradient
    assert not twins.ours.state
    for missing in ([1, 2], [0], [], [0, 1, 2, 3], [2]):
        for optimizer in twins:
            set_grads(optimizer, len(missing))
            for i in missing:
                params_of(optimizer)[i].grad = None
            params_of(optimizer)[1].requires_grad_(not missing)
            optimizer.step()
        assert_optimizers_match(*twins)


@of_settings
def test_groups_added_later(name: str, options: dict[str, Any]) -> None:
    twins = Twins(name, options)
    twins.step(2)
    twins.do(lambda optimizer: optimizer.add_param_group({"params": make_params(SHAPES[::-1]), "lr": 0.3}))
    twins.step(2)


SCHEDULERS: list[Any] = [
    lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
    lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=8),
    lambda o: torch.optim.lr_scheduler.SequentialLR(
        o, [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.CosineAnnealingLR(o, 4)], [2]
    ),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=["StepLR", "OneCycleLR", "SequentialLR"])
@pytest.mark.parametrize(("name", "options"), [*SETTINGS, ("SGD", {"lr": torch.tensor(0.1), "momentum": 0.9})])
def test_schedulers(name: str, options: dict[str, Any], scheduler: Any) -> None:
    options = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in options.items()}
    twins = Twins(name, options)
    schedules = [scheduler(optimizer) for optimizer in twins]
    before = [p.clone() for p in params_of(twins.ours)]
    for _ in range(5):
        twins.step()
        for schedule in schedules:
            schedule.step()
    assert not torch.equal(before[0], params_of(twins.ours)[0])


@of_all_names
def test_tensor_lr_changed_in_place(name: str) -> None:
    twins = Twins(name, {"lr": torch.tensor(0.1)})
    twins.step()
    twins.do(lambda optimizer: optimizer.param_groups[0].update(lr=torch.tensor(0.1)))
    for _ in range(3):
        twins.do(lambda optimizer: optimizer.param_groups[0]["lr"].mul_(0.3))
        twins.step()


def test_tensor_lr_that_requires_grad() -> None:
    twins = Twins("SGD", {"lr": torch.tensor(0.1, requires_grad=True)})
    twins.step(2)


def test_training_goes_down() -> None:
    x, y = randn((64, 5), 1), randn((64, 1), 2)
    for name in NAMES:
        model = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        optimizer = getattr(fusedoptim, name)(model.parameters(), lr=0.01)
        losses = []
        for _ in range(20):
            loss = torch.nn.functional.mse_loss(model(x), y)
            losses.append(loss.item())
            loss.backward()
            optimizer.step(zero_grad="to_none")
        assert losses[-1] < losses[0]
