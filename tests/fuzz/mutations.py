"""What is done to an optimizer in the middle of its step: each takes a case of ``meddling.py`` and a parameter."""

from __future__ import annotations

import gc
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

Mutation = Callable[[Any, Any], Any]


def new_grad(case: Any, p: Tensor) -> None:
    """A gradient where there may be none."""
    p.grad = torch.full_like(p, 0.5)


def _strided_grad(case: Any, p: Tensor) -> None:
    p.grad = torch.ones(*p.shape, 2)[..., 0]


def _grad_of_another_dtype(case: Any, p: Tensor) -> None:
    p.grad_dtype = None
    p.grad = torch.ones_like(p, dtype=case.draw.choice([torch.float64, torch.bfloat16]))


def _replace_state(case: Any, p: Tensor) -> None:
    own = case.state[p]
    key = case.draw.choice(list(own))
    own[key] = own[key].clone()


def _state_of_another_kind(case: Any, p: Tensor) -> None:
    case.state[p] = case.draw.choice([dict, OrderedDict])(case.state[p])


def _forget(case: Any, p: Tensor) -> None:
    """Drops all references to a parameter but those of whoever is at work."""
    for group in case.groups:
        group["params"][:] = [q for q in group["params"] if q is not p]
    case.state.pop(p, None)


def _forget_all(case: Any, p: Tensor) -> None:
    for group in case.groups:
        group["params"].clear()
    case.state.clear()
    gc.collect(1)


def _add_group(case: Any, p: Tensor) -> None:
    if len(case.groups) < 6:
        case.optimizer.add_param_group({"params": [Parameter(torch.ones(5)), Parameter(torch.ones(70))]})


def _more_params(case: Any, p: Tensor) -> None:
    for group in case.groups:
        if len(group["params"]) < 150:
            group["params"].extend(Parameter(torch.ones(3)) for _ in range(40))


def _copy_groups(case: Any, p: Tensor) -> None:
    case.optimizer.param_groups = [{**group, "params": list(group["params"])} for group in case.groups]


def _drop_an_option(case: Any, p: Tensor) -> None:
    group = case.draw.choice(case.groups)
    group.pop(case.draw.choice([key for key in group if key != "params"]))


def _drop_grad(case: Any, p: Tensor) -> None:
    p.grad = None


def _step(case: Any, p: Tensor) -> None:
    case.optimizer.step(zero_grad=case.draw.choice([None, "to_zero", "to_none"]))


def _drop_grads(case: Any, p: Tensor) -> None:
    case.optimizer.zero_grad()


def _zero_grads(case: Any, p: Tensor) -> None:
    case.optimizer.zero_grad(set_to_none=False)


def _exchange(case: Any, x: Tensor) -> None:
    x.data = torch.ones_like(x.data)


def _set(case: Any, x: Tensor) -> None:
    with torch.no_grad():
        x.set_(torch.ones_like(x))  # type: ignore[no-untyped-call]


def _exchange_grad(case: Any, p: Any) -> None:
    _exchange(case, p.grad)


def _set_grad(case: Any, p: Any) -> None:
    _set(case, p.grad)


def _another_shape(case: Any, p: Tensor) -> None:
    p.data = torch.ones(7)


def _another_dtype(case: Any, p: Tensor) -> None:
    p.data = torch.ones_like(p, dtype=torch.float64)


def _free(x: Tensor) -> None:
    x.untyped_storage().resize_(0)


def _free_grad(case: Any, p: Any) -> None:
    _free(p.grad)


GENTLE: list[Mutation] = [
    lambda case, p: None,
    lambda case, p: case.state.clear(),
    lambda case, p: case.state.pop(p),
    lambda case, p: case.state[p].clear(),
    lambda case, p: case.state[p].pop(case.draw.choice(list(case.state[p]))),
    lambda case, p: setattr(case.optimizer, "state", defaultdict(dict)),
    _replace_state,
    _state_of_another_kind,
    _drop_grad,
    new_grad,
    _strided_grad,
    _grad_of_another_dtype,
    _forget,
    _forget_all,
    _add_group,
    _more_params,
    _copy_groups,
    _drop_an_option,
    lambda case, p: case.draw.choice(case.groups)["params"].pop(),
    lambda case, p: case.draw.choice(case.groups)["params"].append(p),
    lambda case, p: case.draw.choice(case.groups)["params"].reverse(),
    lambda case, p: case.groups.pop(),
    lambda case, p: case.draw.choice(case.groups).update(lr=0.02, params=[p]),
    _step,
    _drop_grads,
    _zero_grads,
    lambda case, p: case.optimizer.load_state_dict(case.saved),
]
"""What leaves the memory of tensors that are there where it is; for threads too."""

EXCHANGING: list[Mutation] = [
    _exchange,
    _set,
    _exchange_grad,
    _set_grad,
    lambda case, p: [_exchange(case, x) for x in case.state[p].values()],
    _another_shape,
    _another_dtype,
]
"""What gives tensors other memory, and frees the old. A thread must not: while an operator runs, torch's or ours, it
knows nothing but addresses, and other threads run."""

FREEING: list[Mutation] = [
    lambda case, p: _free(p),
    _free_grad,
    lambda case, p: [_free(x) for x in case.state[p].values()],
    lambda case, p: p.untyped_storage().resize_(2 * p.untyped_storage().nbytes()),
]
"""What takes memory away and puts none in its place. Torch's own operators end the process there, so neither a thread
nor what would be left to them may be beside it."""

LEFT_TO_TORCH: list[Mutation] = [
    _strided_grad, _grad_of_another_dtype, _another_shape, _another_dtype, _drop_an_option,
]  # fmt: skip
LOOKING_AT_GRADS: list[Mutation] = [
    _drop_grad, new_grad, _strided_grad, _grad_of_another_dtype, _step, _drop_grads, _zero_grads, _exchange_grad,
    _set_grad, _free_grad,
]  # fmt: skip
"""What must not be done by who is called because a gradient goes, nor by another thread while one may go: torch shows
it once more, and ends the process."""
