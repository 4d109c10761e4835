"""``swa_utils``: averages of weights that our steps change in place, beside torch's optimizers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from helpers import of_names, randn
from torch import Tensor, nn

import fusedoptim
from fusedoptim import swa_utils

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend", "one_thread")


def make_model() -> Any:
    """Without a bias before BatchNorm: its gradient would be noise about 0, which Adam makes as large as any."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10, bias=False), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 2))


BATCHES = [randn((16, 6), seed) for seed in range(4)]

AVERAGES: dict[str, Callable[[Any], Any]] = {
    "swa": lambda model: swa_utils.AveragedModel(model),
    "swa multi": lambda model: swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_swa_multi_avg_fn()),
    "ema": lambda model: swa_utils.AveragedModel(model, avg_fn=swa_utils.get_ema_avg_fn(0.7)),
    "ema multi": lambda model: swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.7)),
    "ema with buffers": lambda model: swa_utils.AveragedModel(
        model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.7), use_buffers=True
    ),
}


def make(module: Any, name: str, params: Any, **options: Any) -> Any:
    if name == "SGD":
        options = {"momentum": 0.9, **options}
    return getattr(module, name)(params, lr=0.05, **options, **({} if module is fusedoptim else {"foreach": False}))


def train_step(model: Any, optimizer: Any, x: Tensor, **how: Any) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step(**how)


def vectors(*modules: Any) -> list[Tensor]:
    return [torch.cat([x.detach().flatten().double() for x in m.state_dict().values()]) for m in modules]


def assert_close(results: list[list[Tensor]], exact: bool) -> None:
    """Adam differs from torch's for-loop in last bits, which a few passes through the model enlarge."""
    torch.testing.assert_close(*results, rtol=0 if exact else 1e-4, atol=0 if exact else 1e-5)


@of_names
@pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES)
def test_averaged_model_with_swalr_and_update_bn(name: str, average: Callable[[Any], Any]) -> None:
    """The recipe of torch's documentation: a schedule, then SWALR and averaging, then the statistics of BatchNorm."""
    results, rates = [], []
    for module in (fusedoptim, torch.optim):
        model = make_model()
        optimizer = make(module, name, model.parameters())
        averaged = average(model)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
        swa_schedule = swa_utils.SWALR(optimizer, swa_lr=0.02, anneal_epochs=2, anneal_strategy="linear")
        rates.append([])
        for epoch in range(6):
            for x in BATCHES:
                train_step(model, optimizer, x)
            if epoch < 2:
                schedule.step()
            else:
                averaged.update_parameters(model)
                swa_schedule.step()
            rates[-1].append(optimizer.param_groups[0]["lr"])
        before = averaged.module[1].running_mean.clone()
        swa_utils.update_bn(BATCHES, averaged)
        assert not torch.equal(before, averaged.module[1].running_mean)
        results.append(vectors(model, averaged))
        assert not torch.equal(averaged.module[0].weight, model[0].weight)
    assert rates[0] == rates[1]
    assert_close(results, name == "SGD")


@of_names
def test_the_average_is_that_of_the_weights_after_each_step(name: str) -> None:
    """Parameters are updated in place: an average taken after each step holds each of the values once."""
    model = make_model()
    optimizer = make(fusedoptim, name, model.parameters())
    averaged = swa_utils.AveragedModel(model)
    weights = []
    for x in BATCHES * 2:
        train_step(model, optimizer, x, zero_grad="to_zero")
        averaged.update_parameters(model)
        weights.append(model[0].weight.detach().clone())
    assert len({tuple(w.flatten().tolist()) for w in weights}) == len(weights)
    torch.testing.assert_close(averaged.module[0].weight.detach(), torch.stack(weights).double().mean(0).float())


@of_names
def test_averages_go_on_from_a_checkpoint(name: str) -> None:
    results = []
    for interrupted in (False, True):
        model = make_model()
        optimizer = make(fusedoptim, name, model.parameters())
        averaged = AVERAGES["ema multi"](model)
        schedule = swa_utils.SWALR(optimizer, swa_lr=0.01, anneal_epochs=4)
        for i, x in enumerate(BATCHES * 2):
            train_step(model, optimizer, x)
            averaged.update_parameters(model)
            schedule.step()
            if interrupted and i == 3:
                objects = (model, optimizer, averaged, schedule)
                saved = [copy.deepcopy(each.state_dict()) for each in objects]
                model = make_model()
                optimizer = make(fusedoptim, name, model.parameters())
                averaged = AVERAGES["ema multi"](model)
                schedule = swa_utils.SWALR(optimizer, swa_lr=0.01, anneal_epochs=4)
                for each, state in zip((model, optimizer, averaged, schedule), saved, strict=True):
                    each.load_state_dict(state)
        results.append([*vectors(model, averaged), torch.tensor(optimizer.param_groups[0]["lr"])])
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_an_average_by_hand_in_a_hook_after_the_step() -> None:
    """As trainers do it: a step post hook that takes an exponential average."""
    results = []
    for module in (fusedoptim, torch.optim):
        model = make_model()
        optimizer = make(module, "SGD", model.parameters())
        average = [p.detach().clone() for p in model.parameters()]

        def hook(o: Any, args: Any, kwargs: Any, average: list[Tensor] = average, model: Any = model) -> None:
            torch._foreach_lerp_(average, [p.detach() for p in model.parameters()], 0.25)

        optimizer.register_step_post_hook(hook)
        for x in BATCHES:
            train_step(model, optimizer, x)
        results.append(average)
    torch.testing.assert_close(*results, rtol=0, atol=0)
