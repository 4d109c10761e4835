"""Our optimizer beside torch's own on equal parameters: whatever is done to one is done to the other."""

from __future__ import annotations

import inspect
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import fresh
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import fusedoptim
from fusedoptim import native
from fusedoptim.step import FusedStep

OF_TORCH = ["SGD", "Adam", "AdamW", "Adadelta", "Adagrad", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop"]
NAMES = OF_TORCH[:3]  # for tests of what does not depend on the rule
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.02}),
    ("AdamW", {"lr": 0.03, "amsgrad": True, "maximize": True}),
]
of_names = pytest.mark.parametrize("name", NAMES)
of_all_names = pytest.mark.parametrize("name", OF_TORCH)
of_settings = pytest.mark.parametrize(("name", "options"), SETTINGS, ids=["SGD", "momentum", "Adam", "AdamW"])
SHAPES: list[tuple[int, ...]] = [(4, 33), (), (7,), (0,)]

need_kernels = pytest.mark.skipif(not native.available(), reason="the compiled module is missing")


@pytest.fixture(params=[pytest.param("native", marks=need_kernels), "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend in turn. A module imports it and says ``pytestmark = pytest.mark.usefixtures("backend")``."""
    with fusedoptim.set_backend(request.param):
        yield request.param


@pytest.fixture(
    params=[*(pytest.param(name, marks=need_kernels) for name in ("native", "native-general")), "reference"]
)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each way of taking a step in turn; ``native-general`` is the kernels' for whatever is out of the ordinary."""
    if request.param == "native-general":
        make = native.NativeExecutor.__init__

        def without_fast_path(self: Any, *args: Any) -> None:
            make(self, *args)
            self.fast_step = lambda *_: False
            self.measuring_step = lambda *_: None

        monkeypatch.setattr(native.NativeExecutor, "__init__", without_fast_path)
    with fusedoptim.set_backend(request.param.removesuffix("-general")):
        yield request.param


def randn(shape: Sequence[int], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make_params(shapes: Sequence[Sequence[int]] = SHAPES, dtype: torch.dtype = torch.float32) -> list[Parameter]:
    return [Parameter(randn(shape, seed, dtype)) for seed, shape in enumerate(shapes)]


def params_of(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def set_grads(optimizer: Any, seed: int) -> None:
    """Give every parameter of floating dtype a new gradient."""
    for i, p in enumerate(params_of(optimizer)):
        p.grad = randn(p.shape, 1000 * seed + i, p.dtype)


def assert_tensors_match(ours: Tensor, theirs: Tensor, exact: bool, what: str) -> None:
    """Equal dtypes, shapes and bits, or if not ``exact`` values within a few units in the last place."""
    assert ours.dtype == theirs.dtype, what
    assert ours.shape == theirs.shape, what
    assert ours.layout == theirs.layout, what
    if ours.layout == torch.strided and torch.equal(ours, theirs):
        return  # as most often, and quickly seen
    tolerance = {} if not exact else {"rtol": 0, "atol": 0}
    if not exact and ours.dtype == torch.float64:
        tolerance = {"rtol": 1e-12, "atol": 1e-13}
    elif not exact and ours.dtype == torch.float32:
        tolerance = {"rtol": 2e-6, "atol": 2e-7}
    torch.testing.assert_close(
        ours.detach(), theirs.detach(), **tolerance, equal_nan=True, msg=lambda m: f"{what}: {m}"
    )


def assert_optimizers_match(ours: Any, theirs: Any, exact: bool | None = None) -> None:
    """Equal parameters, and state with equal keys. SGD must agree with torch to the bit, Adam almost."""
    exact = isinstance(ours, torch.optim.SGD) if exact is None else exact
    for i, (p, q) in enumerate(zip(params_of(ours), params_of(theirs), strict=True)):
        assert_tensors_match(p, q, exact, f"parameter {i}")
        mine, wanted = ours.state.get(p) or {}, theirs.state.get(q) or {}
        assert set(mine) == set(wanted), f"state of parameter {i}"
        for key, value in mine.items():
            assert_tensors_match(value, wanted[key], exact, f"{key} of parameter {i}")


class Twins:
    """Our optimizer and torch's for-loop, on equal parameters."""

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        params: Callable[[], Any] = make_params,
        theirs: Mapping[str, Any] | None = None,
    ) -> None:
        self.ours: Any = getattr(fusedoptim, name)(params(), **options)
        cls: Any = getattr(torch.optim, name)
        if theirs is None:
            theirs = {flag: False for flag in ("foreach", "fused") if flag in inspect.signature(cls).parameters}
        self.theirs: Any = cls(params(), **{**options, **theirs})
        self.seed = 0

    def __iter__(self) -> Iterator[Any]:
        return iter((self.ours, self.theirs))

    def step(self, count: int = 1, exact: bool | None = None) -> None:
        """Take steps with new gradients, and compare after each."""
        for _ in range(count):
            self.seed += 1
            for optimizer in self:
                set_grads(optimizer, self.seed)
                optimizer.step()
            assert_optimizers_match(*self, exact)

    def sync(self) -> None:
        """Copy our numbers to torch's side, so that later differences are of later steps."""
        with torch.no_grad():
            for p, q in zip(params_of(self.ours), params_of(self.theirs), strict=True):
                q.copy_(p)
                for key, value in (self.ours.state.get(p) or {}).items():
                    self.theirs.state[q][key].copy_(value)

    def do(self, change: Callable[[Any], Any]) -> None:
        for optimizer in self:
            change(optimizer)


def count_calls(monkeypatch: pytest.MonkeyPatch, of: Any, name: str) -> list[Any]:
    """Let a method note its arguments at each call."""
    calls: list[Any] = []
    original = getattr(of, name)

    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(of, name, noting)
    return calls


def torch_steps(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list that grows whenever a step, or part of it, is left to torch."""
    return count_calls(monkeypatch, FusedStep, "_torch_step")


def contents(x: Any) -> Any:
    """Everything of a value that can be compared later, tensors by identity, place and bytes."""
    if isinstance(x, Tensor):
        facts = (id(x), x.dtype, x.shape, x.layout, x.requires_grad, x.grad_fn, x._version)
        if x.layout != torch.strided or x.is_meta:
            return (*facts, str(x))
        return (
            *facts,
            x.data_ptr(),
            x.stride(),
            x.detach().resolve_neg().flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8).tolist()
            if x.numel()
            else [],
        )
    if isinstance(x, dict):
        return {id(k) if isinstance(k, Tensor) else k: contents(v) for k, v in x.items()}
    return [contents(item) for item in x] if isinstance(x, (list, tuple)) else x


def everything_of(optimizer: Any) -> Any:
    """All that a step could write to, for ``==`` before and after."""
    grads = [contents(p.grad) for p in params_of(optimizer)]
    return contents(optimizer.param_groups), grads, contents(optimizer.state)


def run_python(code: str, **environment: str) -> str:
    """Run code in a fresh interpreter, with warnings as errors, and return what it prints, errors included."""
    done = fresh.run(code, {**os.environ, **environment}, 120)
    return done.stdout + done.stderr


def in_child(work: Callable[[], Any], timeout: float = 60) -> None:
    """Run something in a forked process, with one thread; fail with its error, or with the signal that killed it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        text = ""
        try:
            signal.alarm(int(timeout))
            torch.set_num_threads(1)
            work()
        except BaseException:
            text = traceback.format_exc()
        finally:
            os.write(writer, text.encode()[-4000:])
            os._exit(1 if text else 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    if status:
        pytest.fail(text or f"killed by signal {os.WTERMSIG(status)}")
