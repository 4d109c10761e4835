"""Every scheduler of ``torch.optim.lr_scheduler`` drives ours as it drives torch's optimizers."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from helpers import Twins, make_params, params_of, set_grads
from torch.optim import lr_scheduler as lrs

import fusedoptim

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend", "one_thread")

Make = Callable[[Any], Any]

# Some of them change momentum or betas as well. ReduceLROnPlateau is told a metric.
SCHEDULERS: dict[str, list[Make]] = {
    "LambdaLR": [
        lambda o: lrs.LambdaLR(o, lambda epoch: 0.9**epoch),
        lambda o: lrs.LambdaLR(o, [lambda epoch, i=i: 1 / (1 + i + epoch) for i in range(2)]),
    ],
    "MultiplicativeLR": [lambda o: lrs.MultiplicativeLR(o, lambda epoch: 0.8 if epoch % 2 else 1.1)],
    "StepLR": [lambda o: lrs.StepLR(o, 2, 0.3)],
    "MultiStepLR": [lambda o: lrs.MultiStepLR(o, [1, 2, 5], 0.5)],
    "ConstantLR": [lambda o: lrs.ConstantLR(o, 0.25, 3)],
    "LinearLR": [lambda o: lrs.LinearLR(o, 0.1, 1.0, 5)],
    "ExponentialLR": [lambda o: lrs.ExponentialLR(o, 0.7)],
    "PolynomialLR": [lambda o: lrs.PolynomialLR(o, 6, 2.0)],
    "CosineAnnealingLR": [lambda o: lrs.CosineAnnealingLR(o, 4, 1e-3)],
    "CosineAnnealingWarmRestarts": [lambda o: lrs.CosineAnnealingWarmRestarts(o, 2, 2, 1e-3)],
    "SequentialLR": [
        lambda o: lrs.SequentialLR(o, [lrs.LinearLR(o, 0.2, 1.0, 3), lrs.CosineAnnealingLR(o, 5)], [3])
    ],
    "ChainedScheduler": [lambda o: lrs.ChainedScheduler([lrs.ConstantLR(o, 0.5, 4), lrs.ExponentialLR(o, 0.9)])],
    "CyclicLR": [
        lambda o: lrs.CyclicLR(o, 0.01, 0.1, 3, mode="triangular2", cycle_momentum=True),
        lambda o: lrs.CyclicLR(o, 0.01, 0.1, 2, 3, mode="exp_range", gamma=0.9, cycle_momentum=False),
    ],
    "OneCycleLR": [
        lambda o: lrs.OneCycleLR(o, 0.2, total_steps=10),
        lambda o: lrs.OneCycleLR(o, [0.2, 0.1], 10, three_phase=True, anneal_strategy="linear"),
    ],
    "ReduceLROnPlateau": [lambda o: lrs.ReduceLROnPlateau(o, factor=0.5, patience=1, cooldown=1)],
}  # fmt: skip
of_schedulers = pytest.mark.parametrize(
    "make", [m for several in SCHEDULERS.values() for m in several],
    ids=[f"{name}-{i}" for name, several in SCHEDULERS.items() for i in range(len(several))],
)  # fmt: skip
OPTIMIZERS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "SGD": ("SGD", lambda: {"lr": 0.1, "momentum": 0.9}),
    "Adam": ("Adam", lambda: {"lr": 0.1, "weight_decay": 0.01}),
    "AdamW of a Tensor lr": ("AdamW", lambda: {"lr": torch.tensor(0.1)}),
    "SGD of a Tensor lr": ("SGD", lambda: {"lr": torch.tensor(0.1), "momentum": 0.9}),
}
METRICS = [3.0, 2.0, 2.0, 2.0, 2.0, 2.5, 2.0, 1.0]


def groups() -> list[dict[str, Any]]:
    """Two groups; the second has hyper-parameters of its own."""
    return [{"params": make_params([(4, 5), (3,)])}, {"params": make_params([(7,)]), "weight_decay": 0.1}]


def advance(scheduler: Any, metric: float) -> None:
    scheduler.step(metric) if isinstance(scheduler, lrs.ReduceLROnPlateau) else scheduler.step()


def settings(optimizer: Any) -> list[Any]:
    names = ("lr", "momentum", "betas", "initial_lr", "max_lr", "min_lr")
    return [[(name, group[name]) for name in names if name in group] for group in optimizer.param_groups]


def test_the_table_holds_every_scheduler() -> None:
    public = {
        name
        for name, member in vars(lrs).items()
        if inspect.isclass(member) and member.__module__ == lrs.__name__ and not name.startswith("_")
    }
    assert set(SCHEDULERS) == public - {"LRScheduler"}
    assert fusedoptim.lr_scheduler is lrs


@of_schedulers
@pytest.mark.parametrize("which", OPTIMIZERS)
def test_drives_ours_as_torchs(which: str, make: Make) -> None:
    """Equal hyper-parameters after each step, and equal parameters; also where saved and loaded in between."""
    name, options = OPTIMIZERS[which]
    twins = Twins(name, {}, groups)
    twins.ours = getattr(fusedoptim, name)(groups(), **options())
    twins.theirs = getattr(torch.optim, name)(groups(), foreach=False, **options())
    schedulers = [make(optimizer) for optimizer in twins]
    seen = []
    for i, metric in enumerate(METRICS):
        twins.step()
        for scheduler in schedulers:
            advance(scheduler, metric)
        ours, theirs = (settings(optimizer) for optimizer in twins)
        assert ours == theirs
        if "Tensor" in which:
            assert all(isinstance(group["lr"], torch.Tensor) for group in twins.ours.param_groups)
        seen.append(repr(ours))
        if i == 3:
            for k, optimizer in enumerate(twins):
                saved = copy.deepcopy((optimizer.state_dict(), schedulers[k].state_dict()))
                schedulers[k] = make(optimizer)
                optimizer.load_state_dict(saved[0])
                schedulers[k].load_state_dict(saved[1])
    assert len(set(seen)) > 1, "it has changed something"


@pytest.mark.parametrize("fused", [None, True])
def test_a_cycled_momentum_reaches_the_kernels(fused: bool | None) -> None:
    """OneCycleLR sets ``momentum`` of SGD and ``betas[0]`` of Adam from step to step."""
    for name, key in (("SGD", "momentum"), ("Adam", "betas")):
        extra = {"momentum": 0.9} if name == "SGD" else {}
        twins = Twins(name, {"lr": 0.1, "fused": fused, **extra})
        schedulers = [lrs.OneCycleLR(o, 0.1, total_steps=9, base_momentum=0.5) for o in twins]
        values = set()
        for _ in range(8):
            twins.step()
            values.add(str(twins.ours.param_groups[0][key]))
            for scheduler in schedulers:
                scheduler.step()
        assert len(values) == 8


def warnings_of(optimizer: Any, order: str) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        set_grads(optimizer, 1)
        scheduler = lrs.ExponentialLR(optimizer, 0.5)
        for letter in order:
            if letter == "o":
                optimizer.step()
            elif letter == "z":
                optimizer.step(**({"zero_grad": "to_zero"} if isinstance(optimizer, fusedoptim.SGD) else {}))
            elif letter == "O":  # a step that the user wraps after the scheduler has, which the scheduler notices
                optimizer.step = type(optimizer).step.__get__(optimizer)
            else:
                scheduler.step()
    return [str(w.message) for w in caught]


@pytest.mark.parametrize("order", ["os", "so", "sos", "oss", "ss", "s", "zs", "Oos"])
def test_the_warning_about_the_order_of_steps_is_torchs(order: str) -> None:
    ours, theirs = (warnings_of(module.SGD(make_params(), lr=0.1), order) for module in (fusedoptim, torch.optim))
    assert ours == theirs
    assert any("lr_scheduler.step()" in text for text in ours) == (order[0] in "sO")


def test_a_step_skipped_by_grad_scaler_warns_as_in_torch() -> None:
    """Where the scaler does not call the optimizer, torch warns; a fused optimizer is called, and skips by itself."""
    for fused in (None, True):
        results = []
        for module in (fusedoptim, torch.optim):
            optimizer = module.Adam(make_params(), fused=fused)
            scheduler = lrs.ExponentialLR(optimizer, 0.5)
            scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
            scaler.scale(sum((p * torch.inf).sum() for p in params_of(optimizer))).backward()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                scaler.step(optimizer)
                scaler.update()
                scheduler.step()
            results.append([str(w.message) for w in caught])
        assert results[0] == results[1]
        assert bool(results[0]) == (fused is None)
