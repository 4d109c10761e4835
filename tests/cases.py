"""The table that every test runs over, and the tools to set up a step, take it on some path and compare the bits.

A new optimizer adds its rows to ``CASES`` and nothing else. Comparisons are of bits: a NaN equals any NaN, the signs of
zeros must agree, everything else must be the same number.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedoptim
from fusedoptim import native

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

CHUNK = 16384  # elements that a thread claims at once: kChunk in csrc/cpu/run.cpp
BLOCK = 2048  # elements between two passes over the gradient: kBlock there
PER_THREAD = 32768  # elements below which there is no further thread: kPerThread there
SMALL_SIZES = [0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65]  # around the vector widths
CHUNK_SIZES = [CHUNK - 1, CHUNK, CHUNK + 1]
BLOCK_SIZES = [BLOCK - 1, BLOCK, BLOCK + 1]

_NOT_OF_THE_RULE = {"params", "foreach", "fused", "capturable", "differentiable"}  # they choose who takes the step


# ---- the table ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Case:
    """One optimizer with one set of hyper-parameters."""

    cls: type[Optimizer]
    torch_cls: type[Optimizer]
    kwargs: Mapping[str, Any]
    id: str
    twin: str  # torch's implementation, "for-loop" or "fused", that rounds where the rule does

    def make(self, params: Iterable[Any], **overrides: Any) -> Any:
        """Our optimizer."""
        return self.cls(params, **{**self.kwargs, **overrides})

    def make_torch(self, params: Iterable[Any], **overrides: Any) -> Any:
        """Torch's own, as its for-loop if ``fused=True`` is not said; on the CPU that one knows no capturable."""
        options = {key: value for key, value in self.kwargs.items() if key != "capturable"}
        return self.torch_cls(params, **{**options, "foreach": False, "fused": False, **overrides})

    def make_exact(self, params: Iterable[Any]) -> Any:
        """Torch's for-loop, for float64 parameters: no constant is computed in float32, as from a Tensor lr."""
        numbers = {
            key: tuple(map(float, value)) if isinstance(value, tuple) else float(value)
            for key, value in self.kwargs.items()
            if isinstance(value, (Tensor, tuple))
        }
        return self.make_torch(params, **numbers)

    def hyper_parameters(self) -> dict[str, tuple[Any, Any]]:
        """The default and the value of every hyper-parameter of the mathematics."""
        signature = inspect.signature(self.torch_cls).parameters.values()
        return {
            p.name: (p.default, self.kwargs.get(p.name, p.default)) for p in signature if p.name not in _NOT_OF_THE_RULE
        }


def _cases(name: str, table: Mapping[str, Mapping[str, Any]], twin: str) -> list[Case]:
    ours, torchs = getattr(fusedoptim, name), getattr(torch.optim, name)
    return [Case(ours, torchs, kwargs, f"{name}-{row.replace(' ', '_')}", twin) for row, kwargs in table.items()]


_SGD: dict[str, dict[str, Any]] = {
    "defaults": {},
    "lr": {"lr": 0.37},
    "lr 0": {"lr": 0.0, "momentum": 0.9},
    "Tensor lr": {"lr": torch.tensor(0.0123), "momentum": 0.9},
    "weight decay": {"lr": 0.0123, "weight_decay": 0.013},
    "maximize": {"lr": 0.0123, "maximize": True},
    "momentum": {"lr": 0.0123, "momentum": 0.87},
    "dampening": {"lr": 0.0123, "momentum": 0.87, "dampening": 0.3},
    "dampening alone": {"lr": 0.0123, "dampening": 0.3},
    "nesterov": {"lr": 0.0123, "momentum": 0.87, "nesterov": True},
    "fused": {"lr": 0.0123, "momentum": 0.87, "fused": True},
    "everything": {"lr": 0.0123, "momentum": 0.87, "dampening": 0.3, "weight_decay": 0.013, "maximize": True},
    "everything nesterov": {"lr": 0.0123, "momentum": 0.87, "weight_decay": 0.013, "nesterov": True, "maximize": True},
}
_ADAM: dict[str, dict[str, Any]] = {
    "defaults": {},
    "lr": {"lr": 0.0123},
    "lr 0": {"lr": 0.0, "weight_decay": 0.013},
    "Tensor lr": {"lr": torch.tensor(0.0123), "weight_decay": 0.013},
    "Tensor betas": {"betas": (torch.tensor(0.87), torch.tensor(0.983))},
    "betas": {"betas": (0.87, 0.983)},
    "small betas": {"betas": (0.3, 0.7)},  # 1 - beta1 >= 0.5: exp_avg is interpolated from the gradient's side
    "beta1 half": {"betas": (0.5, 0.99)},
    "beta1 just over half": {"betas": (0.5 + 1e-10, 0.99)},  # 1 - beta1 is 0.5 in float and less in double
    "beta1 0": {"betas": (0.0, 0.99)},
    "betas 0": {"betas": (0.0, 0.0)},
    "eps": {"eps": 1e-3},
    "eps 0": {"eps": 0.0},
    "weight decay": {"weight_decay": 0.13},
    "no weight decay": {"weight_decay": 0.0},
    "maximize": {"maximize": True},
    "amsgrad": {"amsgrad": True, "betas": (0.9, 0.5)},  # with so short a memory the maximum matters
    "capturable": {"capturable": True},
    "fused": {"fused": True, "weight_decay": 0.013},
    "everything": {
        "lr": 0.0123, "betas": (0.8, 0.3), "eps": 1e-5, "weight_decay": 0.13, "amsgrad": True, "maximize": True,
    },
    "everything small beta1": {
        "lr": 0.0123, "betas": (0.45, 0.3), "eps": 1e-5, "weight_decay": 0.13, "amsgrad": True, "maximize": True,
    },
}  # fmt: skip
_ADAM_ONLY: dict[str, dict[str, Any]] = {
    "decoupled": {"weight_decay": 0.13, "decoupled_weight_decay": True},
    "everything decoupled": {**_ADAM["everything"], "decoupled_weight_decay": True},
}

CASES = [
    *_cases("SGD", _SGD, "for-loop"),
    *_cases("Adam", {**_ADAM, **_ADAM_ONLY}, "fused"),
    *_cases("AdamW", _ADAM, "fused"),
]


def everything() -> list[Case]:
    """Of each class the cases with all hyper-parameters at once: what tests take that look not at rules but drivers."""
    return [case for case in CASES if "everything" in case.id]


def one_per_class() -> list[Case]:
    """The first of ``everything`` of each class."""
    return list({case.cls: case for case in reversed(everything())}.values())[::-1]


def of_cases(cases: Sequence[Case] = CASES) -> pytest.MarkDecorator:
    """Run a test over cases."""
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


of_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=[str(dtype).removeprefix("torch.") for dtype in DTYPES])


def _instruction_sets() -> list[Any]:
    """The instruction sets of this build; those that cannot run are skipped."""
    if not native.available():
        return [pytest.param(None, id="native", marks=pytest.mark.skip(reason=native.why_missing()))]
    info = fusedoptim.build_info()
    return [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                name not in info["instruction_sets_supported"], reason=f"this processor does not support {name}"
            ),
        )
        for name in info["instruction_sets_built"]
    ]


# Written above the other two, it varies fastest, so that what the reference returned can serve all instruction sets.
of_instruction_sets = pytest.mark.parametrize("instruction_set", _instruction_sets())


def best_instruction_set() -> str:
    """The one in use where nothing else is asked for: for tests of what all of them share."""
    if not native.available():
        pytest.skip(native.why_missing())
    return fusedoptim.build_info()["instruction_sets_supported"][0]


# ---- numbers --------------------------------------------------------------------------------------------------------


def numbers(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Numbers of both signs and many magnitudes around 1; in every fifth place none of them but zero."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator, dtype=torch.float64)
    values *= torch.randn(count, generator=generator, dtype=torch.float64).mul(2).exp()
    return (values * (torch.rand(count, generator=generator) > 0.2)).to(dtype)


def any_bits(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Any bit patterns at all; every second number has an exponent near that of 1, so that they meet each other."""
    generator = torch.Generator().manual_seed(seed)
    integer = INTEGERS[dtype.itemsize]
    limits = torch.iinfo(integer)
    patterns = torch.randint(limits.min, limits.max, (count,), generator=generator, dtype=integer).view(dtype)
    patterns[::2] = numbers(count, dtype, seed + 1)[::2]
    return patterns


def special_values(dtype: torch.dtype) -> Tensor:
    """Zeros, subnormals, both ends of the range, squares that overflow or vanish, infinities and NaN."""
    info = torch.finfo(dtype)
    tiny, eps, largest = info.tiny, info.eps, info.max
    positive = [
        0.0, tiny * eps, 3 * tiny * eps, tiny - tiny * eps, tiny, tiny + tiny * eps, math.sqrt(tiny), eps / 2, 1.0,
        1 + eps, math.pi, math.sqrt(largest), 2 * math.sqrt(largest), largest / 2, largest, math.inf, math.nan,
    ]  # fmt: skip
    return torch.tensor([*positive, *(-x for x in positive)], dtype=torch.float64).to(dtype)


def parameters(sizes: Iterable[int], dtype: torch.dtype, seed: int = 1000) -> list[Parameter]:
    """One-dimensional parameters."""
    return [Parameter(numbers(size, dtype, seed + i)) for i, size in enumerate(sizes)]


def set_gradients(params: Iterable[Parameter], seed: int) -> None:
    """Give every parameter a new gradient, which depends on nothing but the seed and its place in the list."""
    for i, p in enumerate(params):
        p.grad = numbers(p.numel(), p.dtype, seed * 100_003 + i).view(p.shape)


# ---- taking steps ---------------------------------------------------------------------------------------------------


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Take the steps on ``"reference"``, or on the kernels of the instruction set of that name."""
    if name == "reference":
        with fusedoptim.set_backend("reference"):
            yield
        return
    before = fusedoptim.build_info()["instruction_set"]
    native.set_instruction_set(name)
    try:
        with fusedoptim.set_backend("native"):
            yield
    finally:
        native.set_instruction_set(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch and the kernels use ``count`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


Snapshot = list[dict[str, Tensor]]


def tensors(optimizer: Any) -> Snapshot:
    """For every parameter its tensors by name: itself, its gradient if it has one and its state. Not copies."""
    result = []
    for p in itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups):
        entry = {"param": p.detach(), **({} if p.grad is None else {"grad": p.grad.detach()})}
        state = optimizer.state.get(p, {})
        result.append({**entry, **{name: x for name, x in state.items() if x is not None}})
    return result


def snapshot(optimizer: Any) -> Snapshot:
    """Copies of ``tensors``."""
    return [{name: x.clone() for name, x in entry.items()} for entry in tensors(optimizer)]


def take_steps(optimizer: Any, name: str, count: int = 3, **step_options: Any) -> list[Snapshot]:
    """Take steps on one path with gradients 0, 1, 2, … and return a snapshot after each."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    result = []
    with backend(name):
        for step in range(count):
            set_gradients(params, step)
            optimizer.step(**step_options)
            result.append(snapshot(optimizer))
    return result


def one_step(make: Callable[[list[Parameter]], Any], tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
    """Take one step from copies, in ``dtype``, of the given ``param``, ``grad`` and state; return what comes out.

    Args:
        make: Makes the optimizer.
        tensors: As an entry of a snapshot; the state may be missing, as before the first step.
        dtype: Floating-point dtype.

    Returns:
        The new tensors by name, without ``grad`` and ``step``.
    """
    copies = {name: x.clone() if name == "step" else x.to(dtype, copy=True) for name, x in tensors.items()}
    param = Parameter(copies.pop("param"))
    param.grad = copies.pop("grad")
    optimizer = make([param])
    if copies:
        optimizer.state[param] = copies
    optimizer.step()
    (entry,) = snapshot(optimizer)
    return {name: x for name, x in entry.items() if name not in ("grad", "step")}


def units(dtype: torch.dtype, *magnitudes: Tensor) -> Tensor:
    """The unit in the last place, in ``dtype``, of the largest of the magnitudes, element by element; in float64."""
    info = torch.finfo(dtype)
    largest = functools.reduce(torch.maximum, (x.double().abs().nan_to_num() for x in magnitudes))
    exponents = torch.frexp(largest.clamp(info.tiny, info.max)).exponent.double() - 1
    return torch.exp2(exponents) * info.eps


# ---- comparing ------------------------------------------------------------------------------------------------------


def bits_equal(actual: Tensor, expected: Tensor) -> Tensor:
    """Where two tensors of one dtype and shape hold the same number, as a tensor of bools in row-major order."""
    assert actual.dtype == expected.dtype, f"{actual.dtype} is not {expected.dtype}"
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    a, b = (x.detach().contiguous().view(-1) for x in (actual, expected))
    if not a.dtype.is_floating_point:
        return a == b
    integer = INTEGERS[a.element_size()]
    return (a.view(integer) == b.view(integer)) | (a.isnan() & b.isnan())


def difference(actual: Tensor, expected: Tensor) -> str | None:
    """How many elements differ, and the first that does; None if none does."""
    wrong = torch.nonzero(~bits_equal(actual, expected)).view(-1)
    if len(wrong) == 0:
        return None
    first = int(wrong[0])
    values = (x.detach().contiguous().view(-1)[first].item() for x in (actual, expected))
    got, wanted = (x.hex() if isinstance(x, float) else str(x) for x in values)
    return f"{len(wrong)} of {actual.numel()} elements differ; number {first} is {got} and should be {wanted}"


def differences(actual: Snapshot, expected: Snapshot, when: str = "") -> list[str]:
    """One line for every tensor that differs."""
    assert len(actual) == len(expected)
    lines = []
    for i, (mine, wanted) in enumerate(zip(actual, expected, strict=True)):
        if mine.keys() != wanted.keys():
            lines.append(f"{when}parameter {i} has {sorted(mine)} and should have {sorted(wanted)}")
            continue
        for name, x in mine.items():
            line = difference(x, wanted[name])
            if line is not None:
                lines.append(f"{when}parameter {i} {tuple(x.shape)} {name}: {line}")
    return lines


def fail_on(lines: Sequence[str]) -> None:
    """Fail with the first lines, if there are any."""
    if lines:
        pytest.fail("\n".join([*lines[:12], *([f"… and {len(lines) - 12} more"] if len(lines) > 12 else [])]))


def assert_same(actual: Snapshot, expected: Snapshot, when: str = "") -> None:
    """Every tensor holds the same bits."""
    fail_on(differences(actual, expected, when))


def assert_same_steps(actual: Sequence[Snapshot], expected: Sequence[Snapshot], when: str = "") -> None:
    """As ``assert_same``, for what a number of steps has left."""
    for step, (mine, wanted) in enumerate(zip(actual, expected, strict=True)):
        assert_same(mine, wanted, f"{when}step {step + 1}, ")


def once_on_reference(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate ``function(name, …)``, which takes steps on the path of that name: the reference takes them once."""
    remembered = functools.lru_cache(maxsize=4)(function)

    @functools.wraps(function)
    def run(name: str, *args: Any) -> Any:
        return (remembered if name == "reference" else function)(name, *args)

    return run


def assert_follows(optimizer: Any, name: str, expected: Sequence[Snapshot], **step_options: Any) -> None:
    """Steps on one path give the expected tensors, each step taken from the expected state before it.

    So every line of a failure tells of a mistake in that very step. ``expected`` is what ``take_steps`` returned.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    lines: list[str] = []
    with backend(name):
        for step, wanted in enumerate(expected):
            set_gradients(params, step)
            optimizer.step(**step_options)
            lines += differences(tensors(optimizer), wanted, f"step {step + 1}, ")
            for mine, right in zip(tensors(optimizer), wanted, strict=True):
                for key in mine.keys() & right.keys():
                    mine[key].copy_(right[key])
    fail_on(lines)


# ---- layouts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Where the elements of a tensor lie in a larger buffer.

    ``order`` lists the dimensions from the outermost to the innermost, as in memory; ``spacing`` is the distance
    between neighbours of the innermost one; every dimension but the outermost is ``padding`` elements longer in
    memory; the whole begins ``offset`` elements into the buffer; along ``expanded`` dimensions all elements are one.
    """

    order: tuple[int, ...]
    spacing: int = 1
    padding: int = 0
    offset: int = 0
    expanded: tuple[int, ...] = ()


# For tensors of 4 dimensions.
LAYOUTS: dict[str, Layout] = {
    "contiguous": Layout((0, 1, 2, 3)),
    "channels last": Layout((0, 2, 3, 1)),
    "transposed": Layout((3, 2, 1, 0)),
    "permuted": Layout((2, 0, 3, 1)),
    "begins one element in": Layout((0, 1, 2, 3), offset=1),
    "channels last, three elements in": Layout((0, 2, 3, 1), offset=3),
    "every second element": Layout((0, 1, 2, 3), spacing=2),
    "every third, transposed, one element in": Layout((3, 2, 1, 0), spacing=3, offset=1),
    "padded rows": Layout((0, 1, 2, 3), padding=2),
    "padded channels last": Layout((0, 2, 3, 1), padding=1, offset=5),
}
EXPANDED_LAYOUTS: dict[str, Layout] = {  # a gradient may lie so, nothing else
    "one element": Layout((0, 1, 2, 3), expanded=(0, 1, 2, 3)),
    "expanded outside": Layout((0, 1, 2, 3), expanded=(0,)),
    "expanded inside": Layout((0, 1, 2, 3), expanded=(3,), offset=1),
    "expanded in the middle, permuted": Layout((3, 0, 1, 2), expanded=(1, 2)),
}


class Placed:
    """A copy of a tensor in a given layout, in a buffer whose other elements are guards that nobody may change."""

    def __init__(self, values: Tensor, layout: Layout) -> None:
        shape, strides, pitch = values.shape, [0] * values.dim(), layout.spacing
        for d in reversed(layout.order):
            if d not in layout.expanded:
                strides[d] = pitch
                pitch *= shape[d] + layout.padding
        guard = 64  # elements after the end
        self.buffer = any_bits(layout.offset + pitch + guard, values.dtype, seed=pitch)
        base = [1 if d in layout.expanded else n for d, n in enumerate(shape)]
        first = values[tuple(slice(0, n) for n in base)]
        self.view = self.buffer.as_strided(base, strides, layout.offset).copy_(first).expand(shape)
        places = torch.arange(self.buffer.numel()).as_strided(shape, strides, layout.offset)
        self._guards = torch.ones(self.buffer.numel(), dtype=torch.bool)
        self._guards[places.flatten()] = False
        self.forget()

    def forget(self) -> None:
        """What the guards hold now is what they are to hold."""
        self._before = self.buffer.clone()

    def guard_difference(self) -> str | None:
        """What happened to the guards; None if nothing did."""
        return difference(self.buffer[self._guards], self._before[self._guards])
