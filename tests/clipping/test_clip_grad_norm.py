"""``fusedoptim.clip_grad_norm_`` beside ``torch.nn.utils.clip_grad_norm_``."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from helpers import make_params, randn
from steps import backend
from torch import Tensor
from torch.nn import Parameter
from ways_to_clip import with_grads

import fusedoptim
from fusedoptim import native

PATHS = ["reference", *(fusedoptim.build_info()["instruction_sets_supported"] if native.available() else ())]
of_paths = pytest.mark.parametrize("where", PATHS)


def _outcome(clip: Any, make: Any, *args: Any, **kwargs: Any) -> Any:
    params = make()
    try:
        norm = clip(params, *args, **kwargs)
    except Exception as error:
        return type(error), str(error)
    grads = [p.grad for p in (params if isinstance(params, list) else [params])]
    return norm, *(grad for grad in grads if grad is not None)


SPECIAL = {"usual": 1.0, "zero": 0.0, "inf": math.inf, "nan": math.nan}


@of_paths
@pytest.mark.parametrize("norm_type", [2, 2.0, math.inf, "inf", 1, 3.0, 0])
@pytest.mark.parametrize("special", SPECIAL)
def test_outcomes_of_torch(where: str, norm_type: Any, special: str) -> None:
    def make() -> list[Parameter]:
        empty = [] if float(norm_type) == math.inf else [torch.ones(0)]  # of which torch finds no largest element
        return with_grads([torch.linspace(-3, 2, 40) * SPECIAL[special], torch.tensor(0.5), *empty])

    for max_norm, error in itertools.product((1.0, 0, 1e9, math.inf, torch.tensor(2.0)), (False, True)):
        args = (max_norm, norm_type, error)
        expected = _outcome(torch.nn.utils.clip_grad_norm_, make, *args)
        with backend(where):
            found = _outcome(fusedoptim.clip_grad_norm_, make, *args)
        assert len(found) == len(expected), (found, expected)
        for x, y in zip(found, expected, strict=True):
            if isinstance(y, Tensor):
                torch.testing.assert_close(x, y, equal_nan=True)
            else:
                assert x == y


@of_paths
def test_arguments_of_torch(where: str) -> None:
    """One tensor, none at all, a generator, one listed twice, gradients of several dtypes and of none."""
    mixed = lambda: [*make_params([(3,)], torch.bfloat16), *make_params([(4,)], torch.float16), *make_params([(2,)])]  # noqa: E731
    makes: list[Any] = [lambda: Parameter(torch.ones(3)), list, mixed, lambda: mixed()[:2], lambda: mixed()[:1] * 2]
    for make, foreach in itertools.product(makes, (None, True, False)):

        def with_ones(make: Any = make) -> Any:
            made = make()
            for p in made if isinstance(made, list) else [made]:
                p.grad = torch.full_like(p, 3.0)
            return made

        expected = _outcome(torch.nn.utils.clip_grad_norm_, with_ones, 1.0, foreach=foreach)
        with backend(where):
            found = _outcome(fusedoptim.clip_grad_norm_, with_ones, 1.0, foreach=foreach)
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=0.01, atol=0)  # torch's is made of norms in each dtype
    with backend(where):
        params = with_grads([torch.full((4,), 3.0)])
        assert float(fusedoptim.clip_grad_norm_((p for p in params), 1.0)) == 6
        assert float(params[0].grad.norm()) == pytest.approx(1)
        with pytest.warns(UserWarning, match="empty generator") as caught:
            assert float(fusedoptim.clip_grad_norm_((p for p in []), 1.0)) == 0
        assert caught[0].filename == __file__


@of_paths
def test_gradients_that_need_no_clipping_are_not_written(where: str) -> None:
    params = with_grads([torch.full((4,), 3.0), randn((3, 4), 1).t()])
    with backend(where):
        fusedoptim.clip_grad_norm_(params, 100.0, foreach=True if where != "reference" else None)
        assert [p.grad._version for p in params] == [0, 0]
        fusedoptim.clip_grad_norm_(params, 1.0)
    assert all(p.grad._version > 0 for p in params)


def test_gradients_on_the_device_meta() -> None:
    params = with_grads([torch.ones(3, device="meta")])
    assert fusedoptim.clip_grad_norm_(params, 1.0).is_meta
    optimizer = fusedoptim.Adam(params, max_grad_norm=1.0)
    optimizer.step()
    assert optimizer.clip_grad_norm_(1.0).is_meta
    optimizer.step()
