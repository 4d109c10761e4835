"""Whatever the user changes between two steps, the next step sees it, as torch's for-loop does."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import helpers
import numpy
import pytest
import torch
from helpers import Twins, make_params, of_settings, params_of, randn, set_grads
from torch.nn import Parameter

import fusedoptim

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend")

Change = Callable[[Any], Any]


def _data(optimizer: Any) -> None:
    for p in params_of(optimizer):
        p.data = p.data * 2


def _grow(optimizer: Any) -> None:
    p = params_of(optimizer)[0]
    p.data = randn((6, 2), 5)
    optimizer.state.pop(p, None)


def _set_storage(optimizer: Any) -> None:
    for p in params_of(optimizer):
        with torch.no_grad():
            p.set_(torch.cat([p.flatten(), torch.ones(3)]).untyped_storage(), 0, p.shape, p.stride())


def _swap_storages(optimizer: Any) -> None:
    a, b = params_of(optimizer)[0], Parameter(randn((4, 33), 8))
    torch.utils.swap_tensors(a, b)


def _other_layout(optimizer: Any) -> None:
    p = params_of(optimizer)[0]
    p.data = p.data.t().contiguous().t()


def _resize(optimizer: Any) -> None:
    p = params_of(optimizer)[0]
    optimizer.state.pop(p, None)
    with torch.no_grad():
        p.requires_grad_(False).resize_(9, 9).fill_(0.5).requires_grad_()


def _replace_state(optimizer: Any) -> None:
    for state in optimizer.state.values():
        for key, value in state.items():
            state[key] = value.clone() if key == "step" else value * 0.5


def _state_layout(optimizer: Any) -> None:
    state = optimizer.state[params_of(optimizer)[0]]
    for key, value in state.items():
        state[key] = value.t().contiguous().t() if value.dim() == 2 else value


def _clear_one(optimizer: Any) -> None:
    optimizer.state.pop(params_of(optimizer)[0], None)


def _empty_one(optimizer: Any) -> None:
    optimizer.state[params_of(optimizer)[0]].clear()


def _new_state(optimizer: Any) -> None:
    optimizer.state = defaultdict(dict)


def _copied_state(optimizer: Any) -> None:
    optimizer.state = defaultdict(dict, {p: copy.deepcopy(state) for p, state in optimizer.state.items()})


def _plain_dict(optimizer: Any) -> None:
    optimizer.state = {p: dict(optimizer.state.get(p, {})) for p in params_of(optimizer)}


def _new_params(optimizer: Any) -> None:
    optimizer.param_groups[0]["params"] = make_params([(5,), (2, 2)])


def _reversed_params(optimizer: Any) -> None:
    optimizer.param_groups[0]["params"].reverse()


def _dropped_param(optimizer: Any) -> None:
    del optimizer.param_groups[0]["params"][1]


def _two_groups(optimizer: Any) -> None:
    group = optimizer.param_groups[0]
    optimizer.param_groups = [{**group, "params": group["params"][i::2], "lr": 0.1 * (i + 1)} for i in range(2)]


def _double(optimizer: Any) -> None:
    for p in params_of(optimizer):
        p.data = p.data.double()
        p.grad = None
        for key, value in optimizer.state.get(p, {}).items():
            optimizer.state[p][key] = value.double() if key != "step" else value


def _double_step(optimizer: Any) -> None:
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = state["step"].double()


def _far_step(optimizer: Any) -> None:
    for i, state in enumerate(optimizer.state.values()):
        if "step" in state:
            state["step"] = torch.tensor(float(100 * i))


def _share(optimizer: Any) -> None:
    for p in params_of(optimizer):
        p.share_memory_()


def _load(optimizer: Any) -> None:
    saved = copy.deepcopy(optimizer.state_dict())
    set_grads(optimizer, 77)
    optimizer.step()
    optimizer.load_state_dict(saved)


def _swap_halves(optimizer: Any) -> None:
    """Two parameters exchange their memory."""
    a, b = params_of(optimizer)[0], params_of(optimizer)[2]
    memory = torch.cat([b.detach(), a.detach().flatten()])
    a.data, b.data = memory[7:].view(a.shape), memory[:7]


def _options(**options: Any) -> Change:
    return lambda optimizer: [group.update(options) for group in optimizer.param_groups]


CHANGES: dict[str, Change] = {
    "p.data": _data, "p.data of another shape": _grow, "set_": _set_storage, "swap_tensors": _swap_storages,
    "p.data of another layout": _other_layout, "resize_": _resize, "state replaced": _replace_state,
    "state of another layout": _state_layout, "state removed": _clear_one, "state emptied": _empty_one,
    "opt.state new": _new_state, "opt.state copied": _copied_state, "opt.state a plain dict": _plain_dict,
    "params replaced": _new_params, "params reversed": _reversed_params, "param dropped": _dropped_param,
    "param_groups replaced": _two_groups, "params to double": _double, "share_memory_": _share,
    "step to double": _double_step, "step set": _far_step, "load_state_dict": _load, "memory exchanged": _swap_halves,
    "params a tuple": lambda o: o.param_groups[0].update(params=tuple(o.param_groups[0]["params"])),
    "lr": _options(lr=0.7), "lr a Tensor": _options(lr=torch.tensor(0.7)), "lr 0": _options(lr=0),
    "maximize": _options(maximize=True), "weight decay": _options(weight_decay=0.3), "eps": _options(eps=0.1),
    "betas": _options(betas=[0.5, 0.6]), "momentum": _options(momentum=0.3),
    "no momentum": _options(momentum=0, nesterov=False),
    "dampening": _options(dampening=0.5, nesterov=False), "amsgrad off": _options(amsgrad=False),
    "decoupled": _options(decoupled_weight_decay=True), "to torch": _options(fused=False),
    "fused": _options(fused=True),
}  # fmt: skip


@of_settings
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_change_between_steps(name: str, options: dict[str, Any], change: Change) -> None:
    twins = Twins(name, options)
    twins.step(2)
    for optimizer in twins:
        change(optimizer)
    for group in twins.theirs.param_groups:
        group.update(fused=False)
    twins.sync()
    twins.step(3)


@of_settings
def test_gradient_replaced_and_changed_in_place(name: str, options: dict[str, Any]) -> None:
    twins = Twins(name, options)
    twins.step()
    for change in (
        lambda p: p.grad.mul_(3),
        lambda p: setattr(p, "grad", p.grad + 1),
        lambda p: setattr(p, "grad", None),
        lambda p: setattr(p, "grad", torch.ones_like(p)),
        lambda p: setattr(p.grad, "data", p.grad.data * 2),
        lambda p: setattr(p, "grad", torch.ones(()).expand(p.shape)),
        lambda p: setattr(p, "grad", torch.full((2 * p.numel(),), 0.1)[::2].view(p.shape) if p.dim() < 2 else None),
    ):
        for optimizer in twins:
            for p in params_of(optimizer):
                change(p)
            optimizer.step()
        twins.step()


FLAGS = [("SGD", "nesterov"), ("SGD", "maximize"), ("Adam", "amsgrad"), ("Adam", "decoupled_weight_decay")]
TRUTHS = [None, 0, 1, "", "on", numpy.bool_(False), numpy.bool_(True), torch.tensor(False), torch.tensor(True)]


@pytest.mark.parametrize(("name", "flag"), FLAGS)
@pytest.mark.parametrize("value", TRUTHS, ids=repr)
@pytest.mark.parametrize("steps_before", [0, 2])
def test_flag_that_is_no_bool_goes_by_its_truth(name: str, flag: str, value: Any, steps_before: int) -> None:
    on = {"momentum": 0.9} if name == "SGD" else {"amsgrad": flag == "amsgrad"}
    twins = Twins(name, {"lr": 0.1, "weight_decay": 0.3, **on})
    twins.step(steps_before)
    twins.do(_options(**{flag: value}))
    twins.step(3)


def test_module_moved_to_another_dtype() -> None:
    def params() -> list[Parameter]:
        return list(models[-1].parameters())

    models: list[Any] = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(torch.nn.Linear(5, 3))
    models.reverse()
    twins = Twins("SGD", {"lr": 0.1}, lambda: list(models.pop().parameters()))
    twins.step()
    for optimizer in twins:
        module = torch.nn.Module()
        module.weight, module.bias = params_of(optimizer)
        module.to(torch.float64)
    twins.step()
    assert params_of(twins.ours)[0].dtype == torch.float64


@pytest.mark.parametrize(("name", "key"), [("Adam", "max_exp_avg_sq"), ("AdamW", "max_exp_avg_sq")])
def test_amsgrad_switched_on_later_raises_as_in_torch(name: str, key: str) -> None:
    twins = Twins(name, {})
    twins.step(2)
    for optimizer in twins:
        optimizer.param_groups[0]["amsgrad"] = True
        with pytest.raises(KeyError, match=key):
            optimizer.step()


def test_backend_switched_between_steps() -> None:
    twins = Twins("Adam", {"lr": 0.1})
    for name in ("reference", "auto", "reference"):
        with fusedoptim.set_backend(name):
            twins.step(2)


@of_settings
def test_versions_rise_and_stale_graphs_raise(name: str, options: dict[str, Any]) -> None:
    twins = Twins(name, options)
    twins.step()
    for optimizer in twins:
        watched = [p for p in params_of(optimizer) if p.numel()]
        for p in watched:
            p.grad = None
        loss = sum((p * p).sum() for p in watched)
        versions = [p._version for p in watched]
        set_grads(optimizer, 3)
        optimizer.step()
        assert all(p._version > version for p, version in zip(watched, versions, strict=True))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_zeroing_in_the_step_raises_the_version_of_the_gradient() -> None:
    twins = Twins("SGD", {})
    twins.step()
    grads = [p.grad for p in params_of(twins.ours)]
    versions = [grad._version for grad in grads]
    twins.ours.step()
    assert [grad._version for grad in grads] == versions
    twins.ours.step(zero_grad="to_zero")
    assert all(grad._version > version for grad, version in zip(grads, versions, strict=True))


def test_gradients_that_become_strided_from_the_last_parameter_to_the_first() -> None:
    """What is out of the ordinary is noted from step to step, in the order of the list."""
    twins = Twins("SGD", {"lr": 0.1}, lambda: make_params([(3, 4)] * 3))
    twins.step()
    for first in (2, 1, 0):
        for optimizer in twins:
            set_grads(optimizer, 10 + first)
            for p in params_of(optimizer)[first:]:
                p.grad = p.grad.t().contiguous().t()
            optimizer.step()
        helpers.assert_optimizers_match(*twins)
