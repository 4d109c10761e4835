"""Sparse and complex parameters and tensor subclasses: ours does what torch's optimizers do, errors included."""

from __future__ import annotations

from typing import Any

import helpers
import pytest
import torch
from helpers import Twins, assert_optimizers_match, make_params, of_names, params_of, randn, torch_steps
from outcomes import OPTIONS, assert_same_outcome
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils._pytree import tree_map

import fusedoptim

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend", "one_thread")


# Sparse.


@of_names
def test_embedding_with_sparse_gradients(name: str) -> None:
    """SGD updates the rows, beside dense parameters; Adam raises torch's error, and nothing is written."""

    def train(make: Any) -> Any:
        model = nn.Sequential(nn.EmbeddingBag(20, 4, sparse=True, mode="sum"), nn.Linear(4, 2))
        optimizer = make(model.parameters())
        for seed in range(3):
            optimizer.zero_grad(set_to_none=seed == 2)
            model(torch.tensor([[1, 5, 5], [7, 1, seed]])).square().sum().backward()
            assert model[0].weight.grad.is_sparse
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    result = assert_same_outcome(name, train)
    assert isinstance(result, tuple) == (name != "SGD")
    if name != "SGD":
        assert "does not support sparse gradients, please consider SparseAdam instead" in result[1]


def test_sparse_adam_beside_ours() -> None:
    """The usual cure: SparseAdam, which is torch's own, for the embedding, and ours for the rest."""
    results = []
    for module in (fusedoptim, torch.optim):
        torch.manual_seed(0)
        model = nn.Sequential(nn.EmbeddingBag(20, 4, sparse=True, mode="sum"), nn.Linear(4, 2))
        both = [module.SparseAdam(list(model[0].parameters())), module.Adam(model[1].parameters(), lr=0.1)]
        for seed in range(3):
            model(torch.tensor([[1, 5, 5], [7, 1, seed]])).square().sum().backward()
            for optimizer in both:
                optimizer.step()
                optimizer.zero_grad()
        results.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*results)


# Complex.


@of_names
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_parameters_have_the_bits_of_torch(name: str, dtype: torch.dtype) -> None:
    real = dtype.to_real()

    def params() -> list[Parameter]:
        return [Parameter(torch.complex(randn((5, 3), 1, real), randn((5, 3), 2, real))), *make_params([(4,)], real)]

    twins = Twins(name, OPTIONS[name], params)
    for seed in range(4):
        for optimizer in twins:
            optimizer.zero_grad(set_to_none=seed % 2 == 0)
            weight, bias = params_of(optimizer)
            ((weight * (1 + seed)).abs().square().sum() + (weight.sum() * bias.sum()).abs()).backward()
            bias.grad = randn((4,), seed, real)  # such that only what torch computes anyhow is compared to the bit
            optimizer.step()
    ours, theirs = (params_of(optimizer)[0] for optimizer in twins)
    torch.testing.assert_close(torch.view_as_real(ours), torch.view_as_real(theirs), rtol=0, atol=0)
    assert_optimizers_match(*twins)


# Subclasses.


class Dispatched(Tensor):
    """Wraps a tensor and counts the operations that reach it, as quantized and distributed tensors do."""

    inner: Tensor
    count = 0

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, strides=inner.stride())

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Dispatched({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Dispatched.count += 1
        out = func(*(tree_map(cls.unwrap, args)), **tree_map(cls.unwrap, kwargs or {}))
        if func.__name__.split(".")[0].endswith("_"):
            return args[0]
        return tree_map(lambda x: Dispatched(x) if isinstance(x, Tensor) else x, out)

    @staticmethod
    def unwrap(x: Any) -> Any:
        return x.inner if isinstance(x, Dispatched) else x


class Functional(Tensor):
    """Notes the functions that are called on it; shares memory with what it was made of."""

    called: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Functional.called.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


@of_names
def test_a_wrapper_subclass_sees_torchs_operations(name: str) -> None:
    """As a parameter and as a gradient: its elements are not in its own memory, so the kernels must not look there."""
    values, counts = [], []
    for module, flags in ((fusedoptim, {}), (torch.optim, {"foreach": False})):
        wrapped, plain = Parameter(Dispatched(randn((3, 2), 1))), Parameter(randn((4,), 2))
        optimizer = getattr(module, name)([wrapped, plain], **OPTIONS[name], **flags)
        Dispatched.count = 0
        for seed in (3, 4):
            wrapped.grad, plain.grad = Dispatched(randn((3, 2), seed)), randn((4,), seed)
            optimizer.step()
        counts.append(Dispatched.count)
        values.append([wrapped.inner.detach().clone(), plain.detach()])
    assert counts[0] == counts[1] > 0
    torch.testing.assert_close(*values)
    assert not torch.equal(values[0][0], randn((3, 2), 1))


@of_names
def test_a_torch_function_subclass_sees_torchs_operations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left = torch_steps(monkeypatch)
    calls = []

    def params() -> list[Tensor]:
        return [randn((3, 2), 1).as_subclass(Functional).requires_grad_(), *make_params([(4,)])]

    twins = Twins(name, OPTIONS[name], params)
    for optimizer in twins:
        for p in params_of(optimizer):
            p.grad = randn(p.shape, 5)
        Functional.called = []
        optimizer.step()
        calls.append([call for call in Functional.called if call in ("mul_", "lerp_", "add_", "addcdiv_", "addcmul_")])
    assert calls[0] == calls[1] != []
    assert [[tuple(p.shape) for p in group] for (group,), *_ in left] == [[(3, 2)]]
    assert_optimizers_match(*twins)


@of_names
def test_so_it_does_where_a_default_device_is_set(name: str) -> None:
    p = randn((3, 2), 1).as_subclass(Functional).requires_grad_()
    p.grad = randn((3, 2), 5)
    optimizer = getattr(fusedoptim, name)([p, *make_params([(4,)])], **OPTIONS[name])
    Functional.called = []
    with torch.device("cpu"):
        optimizer.step()
    assert {"add_", "addcdiv_"} & set(Functional.called)


@of_names
def test_a_subclass_that_is_a_parameter_is_left_to_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Marked(Parameter):
        """As model-parallel libraries mark parameters."""

    left = torch_steps(monkeypatch)
    twins = Twins(name, OPTIONS[name], lambda: [Marked(p.detach()) for p in make_params()])
    twins.step(2)
    assert len(left) == 2
