"""zero_grad, alone and inside the step: what torch's ``step(); zero_grad()`` leaves."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from helpers import Twins, assert_optimizers_match, make_params, params_of, randn, set_grads
from torch import Tensor
from torch.nn import Parameter

import fusedoptim

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend")


def _graph(p: Tensor) -> Tensor:
    (grad,) = torch.autograd.grad((p**3).sum(), p, create_graph=True)
    return grad


class Tagged(Tensor):
    """A subclass of no meaning."""


GRADS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "plain": lambda p: randn(p.shape, 1),
    "none": lambda p: None,
    "requires grad": lambda p: randn(p.shape, 1).requires_grad_(),
    "with a graph": _graph,
    "sparse": lambda p: randn(p.shape, 1).to_sparse(),
    "sparse that requires grad": lambda p: randn(p.shape, 1).to_sparse().requires_grad_(),
    "strided": lambda p: randn((2 * p.shape[0], *p.shape[1:]), 1)[::2],
    "transposed": lambda p: randn(p.shape[::-1], 1).T.contiguous().view(p.shape),
    "column-major": lambda p: randn(p.shape, 1).t().contiguous().t(),
    "subclass": lambda p: randn(p.shape, 1).as_subclass(Tagged),
}


def facts(grad: Tensor | None) -> Any:
    if grad is None:
        return None
    dense = grad.to_dense() if grad.is_sparse else grad
    return type(grad), grad.layout, grad.requires_grad, grad.grad_fn, grad.is_leaf, dense.tolist(), dense.stride()


def prepared(kind: str, **options: Any) -> Twins:
    twins = Twins("SGD", {"lr": 0.1, **options}, lambda: make_params([(4, 3), (3, 3), (2, 5)]))
    for optimizer in twins:
        for i, p in enumerate(params_of(optimizer)):
            p.grad = GRADS[kind](p) if i == 1 else randn(p.shape, 9 + i)
    return twins


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("kind", GRADS)
@pytest.mark.parametrize("way", ["zero_grad", "in the step", "step, then zero_grad"])
def test_leaves_what_torch_leaves(kind: str, to_none: bool, way: str) -> None:
    twins = prepared(kind)
    grads = [p.grad for p in params_of(twins.ours)]
    if way == "zero_grad":
        twins.do(lambda optimizer: optimizer.zero_grad(set_to_none=to_none))
    else:
        twins.theirs.step()
        twins.theirs.zero_grad(to_none)
        if way == "in the step":
            twins.ours.step(zero_grad="to_none" if to_none else "to_zero")
        else:
            twins.ours.step()
            twins.ours.zero_grad(to_none)
    assert_optimizers_match(*twins)
    mine, theirs = ([facts(p.grad) for p in params_of(optimizer)] for optimizer in twins)
    assert mine == theirs
    assert mine[0] == (None if to_none else (Tensor, torch.strided, False, None, True, [[0.0] * 3] * 4, (3, 1)))
    if not to_none:
        assert all(p.grad is grad for p, grad in zip(params_of(twins.ours), grads, strict=True)), "the same tensors"


def test_default_is_to_none() -> None:
    twins = prepared("plain")
    twins.do(lambda optimizer: optimizer.zero_grad())
    assert all(p.grad is None for optimizer in twins for p in params_of(optimizer))


def test_step_leaves_gradients_alone_unless_told() -> None:
    twins = prepared("plain")
    before = [p.grad.clone() for p in params_of(twins.ours)]
    twins.ours.step()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(params_of(twins.ours), before, strict=True))


def test_two_parameters_share_a_gradient() -> None:
    twins = prepared("plain")
    for optimizer in twins:
        a, b = params_of(optimizer)[:2]
        b.data, grad = torch.ones(4, 3), randn((4, 3), 5)
        a.grad = b.grad = grad
    twins.theirs.step()
    twins.theirs.zero_grad(False)
    twins.ours.step(zero_grad="to_zero")
    assert_optimizers_match(*twins)
    assert params_of(twins.ours)[0].grad.count_nonzero() == 0


def test_gradients_that_are_views_of_one_buffer() -> None:
    """As flat gradient buckets are; the elements between them are nobody's to write."""
    params = make_params([(3,), (4,)])
    bucket = torch.arange(1.0, 11.0)
    params[0].grad, params[1].grad = bucket[1:4], bucket[5:9]
    fusedoptim.SGD(params, lr=0.1).step(zero_grad="to_zero")
    assert bucket.tolist() == [1, 0, 0, 0, 5, 0, 0, 0, 0, 10]


@pytest.mark.parametrize("mode", ["to_zero", "to_none"])
def test_skipped_step_zeroes_too(mode: str) -> None:
    (p,) = params = make_params([(3,)])
    before = p.detach().clone()
    p.grad = torch.full((3,), torch.inf)
    optimizer = fusedoptim.Adam(params, fused=True)
    optimizer.found_inf, optimizer.grad_scale = torch.ones(1), torch.ones(1)
    optimizer.step(zero_grad=mode)
    assert torch.equal(p, before)
    assert not optimizer.state
    assert (p.grad is None) if mode == "to_none" else (p.grad.tolist() == [0, 0, 0])


def test_gradients_are_freed() -> None:
    for way in (lambda o: o.zero_grad(), lambda o: o.step(zero_grad="to_none")):
        params = make_params([(3,), (4,)])
        optimizer = fusedoptim.Adam(params)
        for seed in (1, 2):
            for p in params:
                p.grad = randn(p.shape, seed)
            optimizer.step()
        watched = [weakref.ref(p.grad) for p in params]
        way(optimizer)
        assert [ref() for ref in watched] == [None, None]


def test_closure_sees_the_gradients_of_its_own_backward() -> None:
    p = Parameter(torch.ones(2))
    optimizer = fusedoptim.SGD([p], lr=0.5)

    def closure() -> Tensor:
        loss = (p * p).sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure, zero_grad="to_zero").item() for _ in range(3)]
    assert losses == [2.0, 0.0, 0.0]


@pytest.mark.parametrize("has_grad", [True, False])
def test_gradients_beside_one_of_another_layout(has_grad: bool) -> None:
    """Those on the fast path are unscaled, zeroed, cut off and versioned as those beside them on the general path."""

    def trained() -> Any:
        optimizer = fusedoptim.Adam(make_params([(4, 3), (3, 4), (5,)]))
        odd = params_of(optimizer)[1]
        for seed in range(3):
            set_grads(optimizer, seed)
            odd.grad = odd.grad.t().contiguous().t() if seed < 2 or has_grad else None
            if seed < 2:
                optimizer.step()
        return optimizer

    ours, expected = trained(), trained()
    grads = [p.grad for p in params_of(ours) if p.grad is not None]
    versions = [grad._version for grad in grads]
    grads[0].requires_grad_(has_grad)
    ours.grad_scale = torch.tensor(8.0)
    ours.step(zero_grad="to_zero")
    for p in params_of(expected):
        p.grad = None if p.grad is None else p.grad / 8
    expected.step()
    assert_optimizers_match(ours, expected, exact=True)
    assert not any(grad.any() or grad.requires_grad for grad in grads)
    assert all(grad._version > version for grad, version in zip(grads, versions, strict=True))
