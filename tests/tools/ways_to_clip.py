"""The three ways to clip, on parameters of every kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from helpers import make_params, params_of, randn
from steps import Snapshot, snapshot
from torch import Tensor
from torch.nn import Parameter

import fusedoptim

WAYS = ("before", "next_step", "setting")


def clip(optimizer: Any, way: str, max_norm: float) -> Tensor | None:
    """Clip before a step, if the way is not that of the optimizer's groups; return the norm, if it is known by now."""
    if way == "before":
        return fusedoptim.clip_grad_norm_(params_of(optimizer), max_norm)
    return optimizer.clip_grad_norm_(max_norm) if way == "next_step" else None


def clipped_steps(
    make: Callable[..., Any],
    way: str,
    set_grads: Callable[[Any, int], Any],
    max_norm: float = 1.5,
    count: int = 3,
    **step: Any,
) -> tuple[list[Snapshot], list[float]]:
    """Take steps, and return parameters and state after each, without the gradients, and the norms.

    Args:
        make: Makes the optimizer, from ``max_grad_norm=`` or nothing.
        way: One of ``WAYS``.
        set_grads: Called with the optimizer and the number of the step.
        max_norm: That of the second step is 0.1 of it, that of the third so large that nothing is clipped.
        count: Of steps.
        step: Arguments of ``step``.
    """
    optimizer = make(max_grad_norm=max_norm) if way == "setting" else make()
    snapshots, norms = [], []
    for number, factor in zip(range(count), (1.0, 0.1, 1e9), strict=False):
        for group in optimizer.param_groups if way == "setting" else ():
            group["max_grad_norm"] = max_norm * factor
        set_grads(optimizer, number)
        norm = clip(optimizer, way, max_norm * factor)
        optimizer.step(**step)
        norms.append(float(optimizer.grad_norm if norm is None else norm))
        snapshots.append(without_grads(snapshot(optimizer)))
    return snapshots, norms


def with_grads(grads: Iterable[Tensor]) -> list[Parameter]:
    """Parameters that have these gradients."""
    params = []
    for grad in grads:
        params.append(Parameter(torch.empty_like(grad)))
        params[-1].grad = grad
    return params


def without_grads(entries: Snapshot) -> Snapshot:
    return [{name: x for name, x in entry.items() if name != "grad"} for entry in entries]


class Subclass(Tensor):
    """Whose step is torch's."""


def odd_params(sparse: bool) -> list[Parameter]:
    """Of every kind, those that torch takes among them."""
    shapes: list[tuple[int, ...]] = [(4, 33), (6, 5), (2, 3, 4, 5), (), (0,), (3, 2, 2, 1, 2, 3), (9,), (5, 3), (7,)]
    params = [Parameter(randn(shape, i)) for i, shape in enumerate(shapes)]
    params[2].data = params[2].data.contiguous(memory_format=torch.channels_last)
    params.append(Parameter(randn((3, 2), 90).to(torch.complex64)))
    params.append(Parameter(randn((5,), 91).as_subclass(Subclass)))  # type: ignore[arg-type]
    return params if sparse else [p for i, p in enumerate(params) if i != 7]


def set_odd_grads(params: Iterable[Tensor], seed: int) -> None:
    """Gradients that are transposed, strided, channels_last, complex and sparse; one comes with the second seed."""
    for i, p in enumerate(params):
        grad = randn(p.shape, 100 * seed + i)
        if p.shape == (6, 5):
            grad = grad.t().contiguous().t()
        elif p.shape == (4, 33):
            grad = randn((8, 66), 100 * seed + i)[::2, ::2]
        elif p.shape == (2, 3, 4, 5):
            grad = grad.contiguous(memory_format=torch.channels_last)
        elif p.shape == (5, 3):
            index = torch.tensor([[0, 2, 2]])
            grad = torch.sparse_coo_tensor(index, randn((3, 3), 100 * seed), (5, 3), check_invariants=True)
        elif p.shape == (7,) and seed == 0:
            p.grad = None  # a late one
            continue
        elif p.is_complex():
            grad = torch.complex(grad, randn(p.shape, 100 * seed + 50))
        elif type(p) is Subclass:
            grad = grad.as_subclass(Subclass)
        p.grad = grad


def optimizer_of(name: str = "SGD", **options: Any) -> Any:
    """Of parameters with gradients of norm 10 and a learning rate of 1."""
    optimizer = getattr(fusedoptim, name)(make_params([(4,), (2, 3)]), lr=1.0, **options)
    for p in params_of(optimizer):
        p.grad = torch.full_like(p, 10**0.5)
    return optimizer


def change(optimizer: Any, step: Callable[[], Any] | None = None) -> float:
    """How far a step goes: the norm of the difference."""
    before = [p.detach().clone() for p in params_of(optimizer)]
    (step or optimizer.step)()
    differences = [(p.detach() - q).flatten() for p, q in zip(params_of(optimizer), before, strict=True)]
    return float(torch.cat(differences).norm())
