"""Clipping within the step under modes, in closures, hooks and compiled functions, and after copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from helpers import make_params, params_of, randn, set_grads
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from ways_to_clip import change, optimizer_of

import fusedoptim

path = helpers.path
pytestmark = pytest.mark.usefixtures("path")


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _Function(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "mode", [_Dispatch, _Function, lambda: torch.device("meta")], ids=["dispatch", "function", "device"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_modes(mode: Callable[[], Any], dtype: torch.dtype) -> None:
    """Measured in the mode, or before it; the step within."""
    for way in ("inside", "outside", "setting", "before"):
        params = [Parameter(randn((4, 5), 1)), Parameter(randn((), 2, dtype))]
        optimizer = fusedoptim.SGD(params, lr=1.0, **({"max_grad_norm": 1.0} if way == "setting" else {}))
        set_grads(optimizer, 3)
        norm = torch.cat([p.grad.double().flatten() for p in params]).norm()
        expected = [(p.detach().double() - p.grad.double() / norm) for p in params]
        if way == "outside":
            optimizer.clip_grad_norm_(1.0)
        with mode():
            if way == "inside":
                optimizer.clip_grad_norm_(1.0)
            elif way == "before":
                fusedoptim.clip_grad_norm_(params, 1.0)
            optimizer.step()
        for p, wanted in zip(params, expected, strict=True):
            torch.testing.assert_close(
                p.detach().double(),
                wanted,
                **({"rtol": 1e-5, "atol": 1e-6} if dtype.itemsize > 2 else {"rtol": 0.01, "atol": 0.01}),
            )


def test_fake_tensors() -> None:
    with FakeTensorMode():
        optimizer = optimizer_of("Adam", max_grad_norm=1.0, skip_nonfinite=True)
        optimizer.step()
        norm = optimizer.clip_grad_norm_(1.0)
        optimizer.step()
    assert norm.shape == optimizer.grad_norm.shape == ()
    assert optimizer.skipped_steps == 0


def test_skipping_in_a_mode() -> None:
    optimizer = optimizer_of(skip_nonfinite=True)
    params_of(optimizer)[0].grad[0] = torch.inf
    with _Dispatch():
        assert change(optimizer) == 0
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize("where", ["closure", "pre-hook"])
def test_called_in_a_closure_or_a_hook(where: str) -> None:
    optimizer = optimizer_of()

    def closure() -> Tensor:
        optimizer.zero_grad()
        sum((p * 10**0.5).sum() for p in params_of(optimizer)).backward()
        if where == "closure":
            optimizer.clip_grad_norm_(1.0)
        return torch.tensor(5.0)

    if where == "closure":
        assert change(optimizer, lambda: optimizer.step(closure)) == pytest.approx(1)
        return
    optimizer.register_step_pre_hook(lambda self, *_: self.clip_grad_norm_(1.0) and None)
    assert change(optimizer) == pytest.approx(1)


def test_torch_compile_around_it() -> None:
    def train(optimizer: Any) -> Tensor:
        norm = optimizer.clip_grad_norm_(1.0)
        optimizer.step()
        return norm * 2

    optimizer = optimizer_of()
    compiled = torch.compile(train, backend="eager")
    assert change(optimizer, lambda: compiled(optimizer)) == pytest.approx(1)
    assert float(
        torch.compile(fusedoptim.clip_grad_norm_, backend="eager")(params_of(optimizer), 1.0)
    ) == pytest.approx(10)
    assert change(optimizer) == pytest.approx(1), "clipped before"


def test_copies_carry_settings_and_no_pending_clip() -> None:
    optimizer = optimizer_of(max_grad_norm=2.0)
    optimizer.clip_grad_norm_(1.0)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        for p in params_of(twin):
            p.grad = torch.full_like(p, 10**0.5)
        assert change(twin) == pytest.approx(2)
    assert change(optimizer) == pytest.approx(1)


def test_from_torch() -> None:
    optimizer = fusedoptim.from_torch(torch.optim.SGD(make_params([(4,)]), lr=1.0))
    params_of(optimizer)[0].grad = torch.full((4,), 5.0)
    optimizer.clip_grad_norm_(1.0)
    assert change(optimizer) == pytest.approx(1)
    optimizer.param_groups[0]["max_grad_norm"] = 2.0
    assert change(optimizer) == pytest.approx(2)


def test_a_learning_rate_in_a_tensor_and_views_of_one_memory() -> None:
    flat = randn((12,), 0)
    optimizer = fusedoptim.SGD([Parameter(flat[:8]), Parameter(flat[4:])], lr=torch.tensor(1.0))
    set_grads(optimizer, 1)
    grads = [p.grad for p in params_of(optimizer)]
    factor = 1 / torch.cat(grads).norm()
    expected = flat.clone()
    expected[:8] -= grads[0] * factor
    expected[4:] -= grads[1] * factor
    optimizer.clip_grad_norm_(1.0)
    optimizer.step()
    torch.testing.assert_close(flat, expected)
