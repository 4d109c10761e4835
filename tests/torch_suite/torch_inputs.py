"""Torch's table of optimizers and their inputs, on every path that a step of ours can take."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from helpers import NAMES, need_kernels, params_of, randn
from torch import Tensor
from torch.nn import Parameter
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.testing._internal import common_optimizers

import fusedoptim

# The import has frozen torch.backends for the whole process.
torch.backends.disable_global_flags.__globals__["__allow_nonbracketed_mutation_flag"] = True

INFOS = {info.optim_cls.__name__: info for info in common_optimizers.optim_db if info.optim_cls.__name__ in NAMES}


@dataclass(frozen=True, eq=False)
class Path:
    """Who takes the step: a backend of ours and flags of the optimizer."""

    id: str
    backend: str
    flags: dict[str, bool] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Whether no part of the step is left to torch."""
        return self.flags in ({}, {"fused": True})


PATHS = [
    Path("native", "native"),
    Path("native-fused", "native", {"fused": True}),
    Path("reference", "reference"),
    Path("reference-fused", "reference", {"fused": True}),  # as slow as "reference", so taken by few tests
    Path("foreach", "native", {"foreach": True}),
    Path("for-loop", "native", {"foreach": False, "fused": False}),
    Path("differentiable", "native", {"differentiable": True}),
]


@dataclass(frozen=True, eq=False)
class Input:
    """One ``OptimizerInput`` of torch's for one of our classes."""

    name: str
    index: int
    path: Path

    def options(self, dtype: torch.dtype | None = None, flags: bool = True) -> dict[str, Any]:
        """A fresh copy of the keyword arguments, since schedulers write to a Tensor lr."""
        kwargs = copy.deepcopy(_inputs(self.name, dtype)[self.index].kwargs)
        return {**kwargs, **self.path.flags} if flags else kwargs

    def ours(self, params: Any, **overrides: Any) -> Any:
        return getattr(fusedoptim, self.name)(params, **{**self.options(), **overrides})

    def torchs(self, params: Any, dtype: torch.dtype | None = None, **overrides: Any) -> Any:
        """Torch's for-loop, which knows no ``capturable`` on the CPU."""
        options = {key: value for key, value in self.options(dtype, flags=False).items() if key != "capturable"}
        return getattr(torch.optim, self.name)(params, **{**options, "foreach": False, "fused": False, **overrides})

    @property
    def maximize(self) -> bool:
        return bool(self.options().get("maximize"))

    @property
    def info(self) -> Any:
        """Torch's ``OptimizerInfo``."""
        return INFOS[self.name]


@functools.lru_cache
def _inputs(name: str, dtype: torch.dtype | None) -> list[Any]:
    """With the capturable ones, none of whose tensors is on a device; torch lists them for CUDA alone."""
    return INFOS[name].optim_inputs_func(device="cuda", dtype=dtype)


def _all_inputs(paths: Sequence[str]) -> Iterator[Any]:
    for path in PATHS:
        marks = [need_kernels] if path.backend == "native" else []
        for name in NAMES if path.id in paths else ():
            for index, each in enumerate(_inputs(name, None)):
                if path.is_ours or not each.kwargs.get("capturable"):  # which torch refuses on the CPU
                    label = f"{path.id}-{name}-{each.desc.replace(' ', '_')}"
                    yield pytest.param(Input(name, index, path), id=label, marks=marks)


OURS = ["native", "native-fused", "reference"]
TORCHS = ["foreach", "for-loop"]


def of_inputs(*paths: str, only: Callable[[Input], bool] = lambda each: True) -> pytest.MarkDecorator:
    """Run a test over the inputs of torch's, on the paths; without any on all but ``differentiable``."""
    return pytest.mark.parametrize("each", [x for x in _all_inputs(paths or OURS + TORCHS) if only(x.values[0])])


def not_capturable(each: Input) -> bool:
    """An input that torch's own implementation takes on the CPU."""
    return not each.options().get("capturable")


class Problem:
    """The sum of the squares of ``weight @ x + bias``, as in torch's tests."""

    def __init__(self, contiguous: bool = True) -> None:
        self.x = randn((5,), 1)
        weight, bias = randn((10, 5, 2), 2), randn((10, 2), 3)
        self.weight, self.bias = (
            Parameter(t[..., 0].contiguous() if contiguous else t[..., 0]) for t in (weight, bias)
        )
        assert self.weight.is_contiguous() is contiguous

    @property
    def params(self) -> list[Parameter]:
        return [self.weight, self.bias]

    def named(self, named: bool) -> list[Any]:
        """The parameters, with names or without."""
        return [(f"name{i}", p) for i, p in enumerate(self.params)] if named else self.params

    def loss(self) -> Tensor:
        return (self.weight.mv(self.x) + self.bias).pow(2).sum()

    def closure(self, optimizer: Any) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            return loss

        return closure

    def train(self, optimizer: Any, steps: int, schedulers: Sequence[Any] = ()) -> float:
        """Take steps, every second one with a closure; the loss after them."""
        closure = self.closure(optimizer)
        for step in range(steps):
            if step % 2:
                loss = optimizer.step(closure)
            else:
                loss = closure()
                optimizer.step()
            for scheduler in schedulers:
                scheduler.step(loss.detach()) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()
        return self.loss().item()


def assert_close(actual: Any, expected: Any, **tolerance: Any) -> None:
    """With the tolerances that torch's suite has, those of the dtype."""
    torch.testing.assert_close(actual, expected, **tolerance, equal_nan=True)


def assert_params_close(ours: Any, theirs: Any, **tolerance: Any) -> None:
    """Parameters, and all of their state."""
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        assert_close(p, q, **tolerance)
        mine, wanted = (optimizer.state.get(x) or {} for optimizer, x in ((ours, p), (theirs, q)))
        assert mine.keys() == wanted.keys()
        for key, value in mine.items():
            assert_close(value, wanted[key], **tolerance)
