"""What the kernels cannot take goes to torch's own implementation, beside parameters that they do take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from helpers import Twins, assert_optimizers_match, make_params, params_of, randn, torch_steps
from torch import Tensor
from torch.nn import Parameter

import fusedoptim

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend")


class Tagged(Tensor):
    """A subclass of no meaning."""


def _dense(seed: int) -> Tensor:
    return randn((3, 2), seed)


# For each kind the parameter, and its gradient for a seed.
KINDS: dict[str, tuple[Callable[[], Tensor], Callable[[int], Tensor]]] = {
    "sparse": (lambda: Parameter(_dense(1)), lambda seed: _dense(seed).to_sparse()),
    "uncoalesced": (
        lambda: Parameter(_dense(1)),
        lambda seed: torch.sparse_coo_tensor([[0, 2, 0]], _dense(seed), (3, 2), check_invariants=False),
    ),
    "complex": (
        lambda: Parameter(torch.complex(_dense(1), _dense(2))), lambda seed: torch.complex(_dense(seed), _dense(-seed))
    ),
    "conjugate": (
        lambda: Parameter(torch.complex(_dense(1), _dense(2))),
        lambda seed: torch.complex(_dense(seed), _dense(-seed)).conj(),
    ),
    "subclass": (lambda: _dense(1).as_subclass(Tagged).requires_grad_(), _dense),
    "gradient a subclass": (lambda: Parameter(_dense(1)), lambda seed: _dense(seed).as_subclass(Tagged)),
    "lazily negated": (
        lambda: Parameter(_dense(1)), lambda seed: torch.complex(_dense(seed), _dense(-seed)).conj().imag
    ),
    "overlapping": (
        lambda: Parameter(torch.arange(4.0).as_strided((3, 2), (1, 1))), lambda seed: torch.ones(3, 2)
    ),
}  # fmt: skip
OPTIONS = [("SGD", {"lr": 0.1}), ("SGD", {"lr": 0.1, "momentum": 0.9}), ("Adam", {"lr": 0.1}), ("AdamW", {"lr": 0.1})]


def outcome(optimizer: Any, make_grad: Callable[[int], Tensor], steps: int) -> str:
    """Take steps; the error, if there was one."""
    for seed in range(1, steps + 1):
        for i, p in enumerate(params_of(optimizer)):
            p.grad = make_grad(seed) if i == 2 else randn(p.shape, 10 * seed + i)
        try:
            optimizer.step()
        except RuntimeError as error:
            return str(error)
    return ""


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=["SGD", "momentum", "Adam", "AdamW"])
@pytest.mark.parametrize("kind", KINDS)
def test_mixed_with_plain_parameters(
    name: str, options: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, make_grad = KINDS[kind]
    left = torch_steps(monkeypatch)
    twins = Twins(name, options, lambda: [*make_params([(4,), (2, 3)]), make(), *make_params([(5,)])])
    results = [outcome(optimizer, make_grad, 3) for optimizer in twins]
    assert results[0].split(" in parameter")[0].strip() == results[1].strip()
    if results[0]:
        assert kind == "overlapping" or name != "SGD"
    else:
        taken = fusedoptim.get_backend() == "reference" and kind == "lazily negated"
        assert [[tuple(p.shape) for p in group] for (group,), *_ in left] == ([] if taken else [[(3, 2)]] * 3)
        assert_optimizers_match(*twins)


def test_meta_parameters() -> None:
    twins = Twins(
        "SGD", {"lr": 0.1, "momentum": 0.9}, lambda: [*make_params([(4,)]), Parameter(torch.ones(3, device="meta"))]
    )
    for optimizer in twins:
        for p in params_of(optimizer):
            p.grad = torch.ones_like(p)
        optimizer.step()
    mine, theirs = (params_of(optimizer) for optimizer in twins)
    assert torch.equal(mine[0], theirs[0])
    assert twins.ours.state[mine[1]]["momentum_buffer"].is_meta


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_gradient_of_another_dtype(name: str) -> None:
    """Torch's SGD takes it, and its Adam does not."""

    def params() -> list[Parameter]:
        p = Parameter(_dense(1).bfloat16())
        p.grad_dtype = torch.float32
        return [p, *make_params([(3,)])]

    twins = Twins(name, {"lr": 0.1}, params)
    for optimizer in twins:
        first, second = params_of(optimizer)
        first.grad, second.grad = _dense(3), randn((3,), 4)
    twins.ours.step()
    if name == "Adam":
        with pytest.raises(RuntimeError, match="dtype"):
            twins.theirs.step()
    else:
        twins.theirs.step()
        assert_optimizers_match(*twins)


def test_a_tied_parameter_that_is_listed_twice() -> None:
    """``[*a.parameters(), *b.parameters()]`` does it where they share a weight: torch warns, and updates it twice."""
    for name, options in OPTIONS:

        def params() -> list[Parameter]:
            first, second = make_params([(4,), (3,)])
            return [first, second, first]

        with pytest.warns(UserWarning, match="duplicate parameters"):
            twins = Twins(name, options, params)
        twins.step(4)


@pytest.mark.parametrize("flags", [{}, {"foreach": True}])
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_more_is_left_to_torch_amid_the_step(name: str, flags: dict[str, Any]) -> None:
    """What is found only after torch has taken others is taken too, and once: here in the first step, and the third."""
    kinds = [torch.complex64, torch.float32, torch.float32, torch.complex64]
    groups = [{"params": [Parameter(randn((5, 2), i).to(dtype))]} for i, dtype in enumerate(kinds)]
    ours = getattr(fusedoptim, name)([{**group, **(flags if i == 1 else {})} for i, group in enumerate(groups)])
    theirs = getattr(torch.optim, name)([Parameter(p.detach().clone()) for p in params_of(ours)], foreach=False)
    for seed in range(4):
        for optimizer in (ours, theirs):
            for i, p in enumerate(params_of(optimizer)):
                p.grad = randn(p.shape, seed + i).to(p.dtype)
            if seed == 2 and name == "SGD":
                params_of(optimizer)[2].grad = params_of(optimizer)[2].grad.to_sparse()
            params_of(optimizer)[3].grad = None if seed < 2 else params_of(optimizer)[3].grad
            optimizer.step()
        assert_optimizers_match(ours, theirs, exact=False)
