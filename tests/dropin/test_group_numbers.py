"""Numbers of a group that the step writes, as those of schedule-free optimizers, and their two modes."""

from __future__ import annotations

import copy
from typing import Any

import helpers
import pytest
import torch
from helpers import assert_optimizers_match, make_params, params_of, set_grads, torch_steps
from torch.nn import Parameter

import fusedoptim
from fusedoptim import AdamWScheduleFree, SGDScheduleFree

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend")
both = pytest.mark.parametrize("cls", [AdamWScheduleFree, SGDScheduleFree])
NUMBERS = ("k", "lr_max", "weight_sum", "scheduled_lr")
OPTIONS = {"lr": 0.0123, "weight_decay": 0.1, "warmup_steps": 3, "r": 0.5, "weight_lr_power": 1.5}


def training(cls: Any, params: Any = None, **options: Any) -> Any:
    optimizer = cls(make_params() if params is None else params, **options)
    optimizer.train()
    return optimizer


def numbers_of(optimizer: Any) -> list[Any]:
    return [group[name] for group in optimizer.param_groups for name in NUMBERS]


@both
@pytest.mark.parametrize("options", [{}, OPTIONS])
def test_the_numbers_are_the_packages(cls: Any, options: dict[str, Any]) -> None:
    """Over both modes, and on from a file of the package."""
    theirs = getattr(pytest.importorskip("schedulefree"), cls.__name__)
    ours, packages = training(cls, **options), training(theirs, **options)
    for step in range(8):
        for optimizer in (ours, packages):
            set_grads(optimizer, step)
            optimizer.step()
        if step == 4:
            for optimizer in (ours, packages):
                optimizer.eval()
            assert_optimizers_match(ours, packages, exact=False)
            ours = cls(params_of(packages), lr=0.5)
            ours.load_state_dict(copy.deepcopy(packages.state_dict()))
            for p in params_of(packages):  # of which both hold one
                p.data = p.data.clone()
            twins = [Parameter(p.detach().clone()) for p in params_of(packages)]
            again = cls(twins, lr=0.5)
            again.load_state_dict(ours.state_dict())
            ours = again
            for optimizer in (ours, packages):
                optimizer.train()
        assert numbers_of(ours) == pytest.approx(numbers_of(packages), rel=1e-14)
        assert isinstance(ours.param_groups[0]["k"], int)
    assert_optimizers_match(ours, packages, exact=False)


@both
def test_a_step_that_fails_or_is_skipped_writes_none(cls: Any) -> None:
    optimizer = training(cls, **OPTIONS)
    for step in range(2):
        set_grads(optimizer, step)
        optimizer.step()
    before, params = numbers_of(optimizer), [p.detach().clone() for p in params_of(optimizer)]

    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(1.0)
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf
    optimizer.param_groups[0]["skip_nonfinite"] = True
    params_of(optimizer)[0].grad.fill_(torch.inf)
    optimizer.step()
    assert optimizer.skipped_steps == 1
    del optimizer.param_groups[0]["skip_nonfinite"]
    state = optimizer.state[params_of(optimizer)[-1]]
    z = state.pop("z")
    optimizer.param_groups[0]["lr"] = "much"
    with pytest.raises(TypeError, match="lr must be a number"):
        optimizer.step()
    optimizer.param_groups[0]["lr"], state["z"] = OPTIONS["lr"], torch.zeros(3)
    set_grads(optimizer, 3)
    with pytest.raises(RuntimeError, match=r"z has shape \(3,\)"):
        optimizer.step()
    state["z"] = z
    assert numbers_of(optimizer) == before
    assert all(torch.equal(p, q) for p, q in zip(params_of(optimizer), params, strict=True))
    optimizer.step()
    assert optimizer.param_groups[0]["k"] == 3


@both
def test_a_step_that_a_loop_shares_counts_once(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Complex parameters go to the loop, all or some of them."""
    calls = torch_steps(monkeypatch)
    for shapes in ([torch.complex64, torch.float32], [torch.complex64], [torch.float32]):
        optimizer = training(cls, [Parameter(torch.ones(3, dtype=dtype)) for dtype in shapes])
        for count in (1, 2, 3):
            for p in params_of(optimizer):
                p.grad = torch.full_like(p, 0.5)
            optimizer.step()
            assert optimizer.param_groups[0]["k"] == count
        assert len({optimizer.state[p]["z"].real[0].item() for p in params_of(optimizer)}) == 1
    assert calls


@both
def test_the_modes(cls: Any) -> None:
    optimizer = cls(make_params())
    set_grads(optimizer, 0)
    with pytest.raises(RuntimeError, match=r"call optimizer.train\(\)"):
        optimizer.step()
    optimizer.train()
    optimizer.eval()
    optimizer.train()  # without state nothing moves
    assert all(torch.equal(p, q) for p, q in zip(params_of(optimizer), make_params(), strict=True))
    for step in range(3):
        set_grads(optimizer, step)
        optimizer.step()
    y = [p.detach().clone() for p in params_of(optimizer)]
    optimizer.eval()
    with pytest.raises(RuntimeError, match=r"call optimizer.train\(\)"):
        optimizer.step()
    x = [p.detach().clone() for p in params_of(optimizer)]
    optimizer.eval()
    assert all(torch.equal(p, q) for p, q in zip(params_of(optimizer), x, strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(x, y, strict=True))
    optimizer.train()
    for p, before in zip(params_of(optimizer), y, strict=True):
        torch.testing.assert_close(p.detach(), before)


def test_a_master_comes_back_exactly() -> None:
    optimizer = training(
        AdamWScheduleFree, [Parameter(torch.ones(50, dtype=torch.bfloat16))], lr=0.1, master_weights=True
    )
    (p,) = params_of(optimizer)
    for step in range(4):
        set_grads(optimizer, step)
        optimizer.step()
    before, master = p.detach().clone(), optimizer.state[p]["master_param"].clone()
    optimizer.eval()
    assert not torch.equal(p, before)
    optimizer.train()
    assert torch.equal(p, before)
    assert torch.equal(optimizer.state[p]["master_param"], master)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: SGDScheduleFree(p, momentum=1.0), "momentum must be above 0 and below 1, got 1.0"),
        (lambda p: SGDScheduleFree(p, lr=-1.0), "lr must be at least 0, got -1.0"),
        (lambda p: AdamWScheduleFree(p, betas=(0.0, 0.9)), r"betas\[0\] must be above 0"),
        (lambda p: AdamWScheduleFree(p, betas=(0.9, 1.0)), "betas must be at least 0 and less than 1"),
        (lambda p: AdamWScheduleFree(p, state_dtype="8bit"), 'state_dtype must not be "8bit" for z'),
        (lambda p: fusedoptim.Adan(p, betas=(0.9, 0.9, 1.0)), "betas must be at least 0 and less than 1"),
        (lambda p: fusedoptim.AdEMAMix(p, beta3_warmup=-1), "beta3_warmup must be at least 0, got -1"),
    ],
)
def test_what_constructors_refuse(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make([Parameter(torch.ones(2))])


def test_a_number_that_two_parameters_share_advances_with_each() -> None:
    """As in torch's loop over them."""
    ours, theirs = (module.NAdam(make_params(), lr=0.1) for module in (fusedoptim, torch.optim))
    for step in range(3):
        for optimizer in (ours, theirs):
            set_grads(optimizer, step)
            optimizer.step()
            first, *others = params_of(optimizer)
            for p in others:
                optimizer.state[p]["mu_product"] = optimizer.state[first]["mu_product"]
    assert_optimizers_match(ours, theirs, exact=False)
    one = ours.state[params_of(ours)[0]]["mu_product"]
    assert all(ours.state[p]["mu_product"] is one for p in params_of(ours))
    assert 0 < float(one) < 0.9 * 0.5**4
