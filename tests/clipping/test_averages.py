"""``ema_decay``: averages that the step writes, against ``swa_utils.AveragedModel`` after it, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from helpers import count_calls, make_params, params_of, set_grads
from torch import Tensor
from torch.nn import Parameter, ParameterList
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fusedoptim
from fusedoptim.step import FusedStep

path = helpers.path
pytestmark = pytest.mark.usefixtures("path", "one_thread")

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD": ("SGD", {}),
    "momentum": ("SGD", {"momentum": 0.9}),
    "Adam": ("Adam", {"amsgrad": True}),
    "AdamW": ("AdamW", {"maximize": True}),
}


def optimizer_of(rule: str, params: Any, **options: Any) -> Any:
    name, own = RULES[rule]
    return getattr(fusedoptim, name)(params, lr=0.05, **own, **options)


def odd_params(dtype: torch.dtype) -> list[Parameter]:
    """Plain ones, more than a block of the kernels, strided ones, and one that torch steps."""
    params = make_params([(3, 4), (5000,), (2,) * 6], dtype)
    strided = Parameter(torch.linspace(-1, 1, 24).to(dtype).reshape(6, 4).t()[::2])
    return [*params, strided, Parameter(torch.linspace(-1, 1, 5).to(torch.complex64))]


def averages_of(optimizer: Any) -> list[Tensor]:
    with optimizer.averaged_parameters():
        return [p.detach().clone() for p in params_of(optimizer)]


def assert_equal(got: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(got) == len(wanted)
    for index, (one, other) in enumerate(zip(got, wanted, strict=True)):
        assert torch.equal(one, other), index


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("decay", [0.9, 0.3])
def test_as_an_averaged_model(rule: str, dtype: torch.dtype, decay: float) -> None:
    """In four steps, the first of which makes the average, with all that a step may do besides."""
    ours = optimizer_of(rule, odd_params(dtype), ema_decay=decay, max_grad_norm=0.7)
    plain = optimizer_of(rule, odd_params(dtype), max_grad_norm=0.7)
    model = ParameterList(params_of(plain))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    for seed in range(4):
        for optimizer in (ours, plain):
            set_grads(optimizer, seed)
            optimizer.step(zero_grad=(None, "to_zero", "to_none", None)[seed])
        average.update_parameters(model)
        assert_equal(averages_of(ours), [p.detach() for p in average.module])
    assert_equal(params_of(ours), params_of(plain))


def test_steps_take_the_fast_path(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = optimizer_of("Adam", make_params(), ema_decay=0.9)
    set_grads(optimizer, 0)
    optimizer.step()
    general = count_calls(monkeypatch, FusedStep, "_general_step")
    optimizer.step()
    is_fast = path == "native" and fusedoptim.build_info()["direct_error"] is None
    assert len(general) == (0 if is_fast else 1)


def test_the_decay_may_change() -> None:
    """From step to step; and an average that is asked for later begins as the parameter then is."""
    optimizer = optimizer_of("Adam", make_params([(4,), (7,)]))
    wanted: list[Tensor] = []
    for seed, decay in enumerate((None, None, 0.9, 0.4, 0.4)):
        optimizer.param_groups[0]["ema_decay"] = decay
        set_grads(optimizer, seed)
        optimizer.step()
        now = [p.detach().clone() for p in params_of(optimizer)]
        if decay is not None:
            wanted = [torch.lerp(a, p, 1 - decay) for a, p in zip(wanted, now, strict=True)] if wanted else now
    assert_equal([optimizer.state[p]["ema"] for p in params_of(optimizer)], wanted)


def test_nothing_of_a_step_that_is_skipped() -> None:
    optimizer = optimizer_of("momentum", make_params([(4,)]), ema_decay=0.5, skip_nonfinite=True)
    (p,) = params_of(optimizer)
    for value in (torch.nan, 1.0, torch.inf):
        p.grad = torch.full((4,), value)
        before = dict(optimizer.state[p]) if p in optimizer.state else None
        kept = None if before is None else before["ema"].clone()
        optimizer.step()
        if value == 1.0:
            assert before is None
        elif before is not None:
            assert torch.equal(optimizer.state[p]["ema"], kept)
            assert optimizer.state[p]["ema"] is before["ema"]
    assert optimizer.skipped_steps == 2


def test_parameters_come_back() -> None:
    optimizer = optimizer_of("SGD", make_params(), ema_decay=0.5)
    for seed in range(2):
        set_grads(optimizer, seed)
        optimizer.step()
    own = [p.detach().clone() for p in params_of(optimizer)]

    def evaluate() -> None:
        with optimizer.averaged_parameters():
            assert not torch.equal(params_of(optimizer)[0], own[0])
            with pytest.raises(RuntimeError, match="leave its block first"):
                optimizer.step()
            with pytest.raises(RuntimeError, match="active already"), optimizer.averaged_parameters():
                pass
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluate()
    assert_equal(params_of(optimizer), own)
    optimizer.step()  # as before


def test_copies() -> None:
    """By order, and of a module by name; what does not fit changes nothing."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 3))
    optimizer = optimizer_of("SGD", reversed(list(model.named_parameters())), ema_decay=0.5)
    for seed in range(2):
        set_grads(optimizer, seed)
        optimizer.step()
    averages = averages_of(optimizer)
    other = copy.deepcopy(model)
    optimizer.copy_averages_to(other)
    assert_equal([p.detach() for p in other.parameters()], averages[::-1])
    targets = [torch.zeros_like(a) for a in averages]
    optimizer.copy_averages_to(targets)
    assert_equal(targets, averages)
    with pytest.raises(ValueError, match="3 parameters, and the optimizer has 4"):
        optimizer.copy_averages_to(targets[:3])
    with pytest.raises(ValueError, match=r"shape \(9,\) for parameter 0 of group 0"):
        optimizer.copy_averages_to([torch.zeros(9), *(torch.zeros_like(a) for a in averages[1:])])
    with pytest.raises(ValueError, match=r"no parameter '1\.bias'"):
        optimizer.copy_averages_to(torch.nn.Sequential(torch.nn.Linear(3, 2)))


@pytest.mark.parametrize("rule", RULES)
def test_a_checkpoint_goes_on(rule: str) -> None:
    """Bit for bit with ours; and torch's class takes it."""
    optimizer = optimizer_of(rule, make_params(), ema_decay=0.9)
    set_grads(optimizer, 0)
    optimizer.step()
    again = optimizer_of(rule, [Parameter(p.detach().clone()) for p in params_of(optimizer)], ema_decay=0.9)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    name, own = RULES[rule]
    theirs = getattr(torch.optim, name)([Parameter(p.detach().clone()) for p in params_of(optimizer)], lr=0.05, **own)
    theirs.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each in (optimizer, again, theirs):
        set_grads(each, 1)
        each.step()
    assert_equal(averages_of(optimizer), averages_of(again))
    assert_equal(params_of(optimizer), params_of(again))


def test_a_file_without_averages_keeps_the_setting() -> None:
    plain = optimizer_of("Adam", make_params())
    set_grads(plain, 0)
    plain.step()
    optimizer = optimizer_of("Adam", make_params(), ema_decay=0.9)
    optimizer.load_state_dict(plain.state_dict())
    assert optimizer.param_groups[0]["ema_decay"] == 0.9
    set_grads(optimizer, 1)
    optimizer.step()
    assert_equal(averages_of(optimizer), [p.detach() for p in params_of(optimizer)])


def with_average(optimizer: Any, make: Callable[[Tensor], Any]) -> dict[str, Any]:
    file = copy.deepcopy(optimizer.state_dict())
    file["state"][0]["ema"] = make(file["state"][0]["ema"])
    return file


DAMAGED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "shape": (lambda _: torch.zeros(9), "has shape"),
    "no tensor": (lambda _: "x", "must be a tensor"),
    "sparse": (lambda x: x.to_sparse(), "has layout"),
    "expanded": (lambda x: torch.zeros(1).expand(x.shape), "elements that share memory"),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_average_is_not_loaded(what: str, rule: str) -> None:
    damage, message = DAMAGED[what]
    optimizer = optimizer_of(rule, make_params(), ema_decay=0.9)
    set_grads(optimizer, 0)
    optimizer.step()
    before = averages_of(optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(with_average(optimizer, damage))
    assert_equal(averages_of(optimizer), before)


def test_two_averages_in_one_place_are_not_loaded() -> None:
    optimizer = optimizer_of("SGD", make_params([(3,), (3,)]), ema_decay=0.9)
    set_grads(optimizer, 0)
    optimizer.step()
    file = with_average(optimizer, torch.clone)
    file["state"][1]["ema"] = file["state"][0]["ema"]
    with pytest.raises(ValueError, match="share"):
        optimizer.load_state_dict(file)


@pytest.mark.parametrize("average", ["x", torch.zeros(9)], ids=["no tensor", "shape"])
def test_a_damaged_average_stops_the_step(average: Any) -> None:
    """Of a parameter that torch steps as well, and before it has."""
    for param in (*make_params([(3,)]), Parameter(torch.ones(3, dtype=torch.complex64))):
        optimizer = optimizer_of("momentum", [param], ema_decay=0.9)
        set_grads(optimizer, 0)
        optimizer.step()
        before = param.detach().clone()
        optimizer.state[param]["ema"] = average
        with pytest.raises((RuntimeError, AttributeError)):  # the latter from the reference, of what is no tensor
            optimizer.step()
        assert torch.equal(param, before)


@pytest.mark.parametrize("decay", [-0.1, 1.5, torch.nan, "0.9"])
def test_a_decay_that_is_none(decay: Any) -> None:
    with pytest.raises(ValueError, match="ema_decay must be None or a number from 0 to 1, got"):
        optimizer_of("SGD", make_params(), ema_decay=decay)
    optimizer = optimizer_of("SGD", make_params(), ema_decay=0.5)
    set_grads(optimizer, 0)
    before = [p.detach().clone() for p in params_of(optimizer)]
    optimizer.param_groups[0]["ema_decay"] = decay
    with pytest.raises((ValueError, TypeError), match="ema_decay"):
        optimizer.step()
    assert_equal(params_of(optimizer), before)
    assert not optimizer.state
