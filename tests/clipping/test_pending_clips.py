"""``optimizer.clip_grad_norm_``: what it serves, and what ends it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import helpers
import pytest
import torch
import ways_to_clip
from helpers import params_of
from torch.nn import Parameter
from ways_to_clip import change, optimizer_of

path = helpers.path
pytestmark = pytest.mark.usefixtures("path")


@contextmanager
def ended() -> Iterator[None]:
    """A warning, at the line that takes the step."""
    with pytest.warns(UserWarning, match="this step does not clip") as caught:
        yield
    assert [w.filename in (__file__, ways_to_clip.__file__) for w in caught] == [True]


def test_it_serves_one_step() -> None:
    optimizer = optimizer_of()
    norm = optimizer.clip_grad_norm_(1.0)
    assert float(norm) == pytest.approx(10)
    assert change(optimizer) == pytest.approx(1)
    assert torch.equal(optimizer.grad_norm, norm)
    assert [float(p.grad.max()) for p in params_of(optimizer)] == [torch.tensor(10**0.5).item()] * 2
    assert change(optimizer) == pytest.approx(10)
    optimizer.clip_grad_norm_(1.0)
    optimizer.clip_grad_norm_(2.0)  # the last one counts, and its norm is that of unclipped gradients
    assert change(optimizer) == pytest.approx(2)


@pytest.mark.parametrize("set_to_none", [False, True])
def test_zero_grad_ends_it_without_a_warning(set_to_none: bool) -> None:
    optimizer = optimizer_of()
    optimizer.clip_grad_norm_(1.0)
    optimizer.zero_grad(set_to_none)
    for p in params_of(optimizer):
        p.grad = torch.full_like(p, 10**0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert change(optimizer) == pytest.approx(10)


def _replace(p: Parameter) -> None:
    p.grad = p.grad.clone()


def _drop(p: Parameter) -> None:
    p.grad = None


def _new_at_the_old_place(p: Parameter) -> None:
    p.grad = None
    p.grad = torch.full_like(p, 3.0)


def _other_memory(p: Parameter) -> None:
    p.grad.data = p.grad.clone()


CHANGES: dict[str, Callable[[Parameter], Any]] = {
    "written": lambda p: p.grad.mul_(1.0),
    "accumulated": lambda p: p.square().sum().backward(),
    "replaced": _replace,
    "dropped": _drop,
    "new": _new_at_the_old_place,
    "other memory": _other_memory,
}


@pytest.mark.parametrize("changed", CHANGES.values(), ids=CHANGES)
def test_no_coefficient_for_other_gradients(changed: Callable[[Parameter], Any]) -> None:
    optimizer = optimizer_of()
    optimizer.clip_grad_norm_(1.0)
    changed(params_of(optimizer)[1])
    norm = torch.cat([p.grad.flatten() for p in params_of(optimizer) if p.grad is not None]).norm()
    with ended():
        assert change(optimizer) == pytest.approx(float(norm))
    assert change(optimizer) == pytest.approx(float(norm)), "warned once"


def test_a_gradient_where_there_was_none() -> None:
    optimizer = optimizer_of()
    late = params_of(optimizer)[0]
    late.grad, grad = None, late.grad
    optimizer.clip_grad_norm_(1.0)
    late.grad = grad
    with ended():
        assert change(optimizer) == pytest.approx(10)


def test_an_error_leaves_no_clip() -> None:
    optimizer = optimizer_of()
    optimizer.clip_grad_norm_(1.0)
    params_of(optimizer)[0].grad[0] = torch.nan
    with pytest.raises(RuntimeError, match=r"order 2\.0 for gradients .* is non-finite"):
        optimizer.clip_grad_norm_(1.0, error_if_nonfinite=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert not params_of(optimizer)[1].isnan().any()


def test_other_parameters() -> None:
    optimizer = optimizer_of()
    optimizer.clip_grad_norm_(1.0)
    added = Parameter(torch.zeros(1))
    added.grad = torch.ones(1)
    optimizer.add_param_group({"params": [added]})
    optimizer.register_step_pre_hook(lambda *_: None)
    with ended():
        optimizer.step()
    assert added.item() == -1
    optimizer.clip_grad_norm_(1e-3)
    exchanged = optimizer.param_groups[1]["params"][0] = Parameter(torch.zeros(1))
    exchanged.grad = torch.ones(1)
    with ended():
        optimizer.step()
    assert exchanged.item() == -1


@pytest.mark.parametrize("why", ["found_inf", "skip_nonfinite", "error"])
def test_a_step_that_is_not_taken_ends_it_too(why: str) -> None:
    optimizer = optimizer_of(fused=True, skip_nonfinite=True)
    if why == "skip_nonfinite":
        params_of(optimizer)[0].grad[0] = torch.nan
    optimizer.clip_grad_norm_(1.0)
    if why == "found_inf":
        optimizer.found_inf, optimizer.grad_scale = torch.tensor(1.0), None
    elif why == "error":
        optimizer.param_groups[0]["lr"] = "much"
    if why == "error":
        with pytest.raises(TypeError):
            optimizer.step()
        optimizer.param_groups[0]["lr"] = 1.0
    else:
        assert change(optimizer) == 0
        optimizer.found_inf = torch.tensor(0.0)
    if why == "skip_nonfinite":
        optimizer.param_groups[0]["skip_nonfinite"] = False
        optimizer.step()
        assert not params_of(optimizer)[1].isnan().any(), "a clip would have made all NaN"
    else:
        assert change(optimizer) == pytest.approx(10)
