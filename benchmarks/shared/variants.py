"""The optimizers, and the implementations of them that are compared."""

import importlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

import fusedoptim
from benchmarks.shared.measure import Call, nothing
from fusedoptim.reference import RULES as DECLARED
from fusedoptim.step import FusedStep


@dataclass(frozen=True)
class Rule:
    """An optimizer and the arguments it is benchmarked with."""

    class_name: str  # in `fusedoptim`, and in `torch.optim` or a package
    state: tuple[str, ...]  # the tensors it keeps per parameter, by their names in `optimizer.state`
    options: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments beside `lr`
    declared: Any = None  # what the package says of the rule
    for_loop: Any = None  # the class whose step takes what the kernels do not

    @property
    def operands(self) -> int:  # tensors that a step looks at for each parameter: itself, its gradient and its state
        return 2 + len(self.state)

    @property
    def accesses(self) -> int:  # of an element in a step, which reads all operands and writes all but the gradient
        return 2 * self.operands - 1

    bytes_per_element = property(lambda self: 4 * self.accesses)


def _rule(name: str, **options: Any) -> Rule:
    cls = getattr(fusedoptim, name)
    group = {name: p.default for name, p in inspect.signature(cls).parameters.items()} | options
    declared = DECLARED[cls._rule]
    return Rule(name, tuple(declared.tensors(group)), options, declared, cls._torch_class)


RULES = {"sgd": _rule("SGD", momentum=0.9), "adam": _rule("Adam"), "adamw": _rule("AdamW")}
# Those that have no workload of their own. RAdam is rectified from the third step on.
_OPTIONS: dict[str, dict[str, Any]] = {"RAdam": {"betas": (0.9, 0.7)}}
_OURS = [name for name in sorted(fusedoptim.__all__) if FusedStep in getattr(getattr(fusedoptim, name), "__mro__", ())]
MORE_RULES = {name.lower(): _rule(name, **_OPTIONS.get(name, {})) for name in _OURS if name.lower() not in RULES}
ALL = "all"  # among the names of optimizers on a command line


def chosen(names: Sequence[str] | None, default: Iterable[str]) -> list[str]:
    return [*RULES, *MORE_RULES] if names and ALL in names else list(names or default)


# What a check of three steps must see, it sees: a maximum that is not the average, a decay that is no rounding error.
_AMSGRAD = _rule("Adam", amsgrad=True, betas=(0.9, 0.5))
ALL_RULES = RULES | MORE_RULES | {"adamw-decay": _rule("AdamW", weight_decay=0.5), "adam-amsgrad": _AMSGRAD,
                                  "sgd-plain": _rule("SGD")}  # fmt: skip
LABELS = {"adam": "Adam", "adamw-decay": "AdamW", "adam-amsgrad": "Adam, amsgrad", "sgd-plain": "SGD",
          "sgd": "SGD, momentum"}  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Variant:
    name: str  # as in tables and on the command line
    module: Any  # where its classes live, if they do
    flags: Mapping[str, bool]  # the constructor arguments that choose the implementation

    @property
    def is_ours(self) -> bool:
        return self.module is fusedoptim

    def cls(self, rule: str) -> Any:  # None where there is none
        return getattr(self.module, ALL_RULES[rule].class_name, None)

    def has(self, rule: str) -> bool:  # whether the class of a rule has this implementation
        cls = self.cls(rule)
        return cls is not None and self.flags.keys() <= inspect.signature(cls).parameters.keys()

    def build(self, rule: str, params: Iterable[torch.Tensor], lr: float, **settings: Any) -> Any:
        kind, cls, flags = ALL_RULES[rule], self.cls(rule), self.flags
        if cls is None:  # in float64, our own for-loop says what is right; its equations have tests of their own
            cls, flags = kind.for_loop, {}
        optimizer = cls(params, lr=lr, **{**kind.options, **flags, **settings})
        getattr(optimizer, "train", nothing)()
        return optimizer

    def loop_calls(self, optimizer: Any, zero_grad: str) -> tuple[Call, Call]:
        # At the start of an iteration, and for the step. "separate" is `zero_grad()`; "to_zero" and "to_none" clear the
        # gradients in our step, and at the start of the loop in that way for torch.
        if zero_grad == "separate":
            return optimizer.zero_grad, optimizer.step
        if self.is_ours:
            return nothing, partial(optimizer.step, zero_grad=zero_grad)
        return partial(optimizer.zero_grad, set_to_none=zero_grad == "to_none"), optimizer.step


OURS = "fusedoptim"
OURS_CALLS = "fusedoptim-calls"  # leaves to the step only what torch's does, see `tails.py`
LIMIT = "streaming limit"  # beside the variants in tables: see `probe.py`


class _Packages:  # that people install for optimizers which torch lacks
    def __getattr__(self, name: str) -> Any:
        packages = {"Lion": "lion_pytorch", "AdamWScheduleFree": "schedulefree", "SGDScheduleFree": "schedulefree"}
        try:
            return getattr(importlib.import_module(packages[name]), name)
        except (KeyError, ModuleNotFoundError):
            raise AttributeError(name) from None


_VARIANTS = (
    Variant("torch-forloop", torch.optim, {"foreach": False}),
    Variant("torch-default", torch.optim, {}),
    Variant("torch-foreach", torch.optim, {"foreach": True}),
    Variant("torch-fused", torch.optim, {"fused": True}),
    Variant("package", _Packages(), {}),
    Variant(OURS_CALLS, fusedoptim, {}),
    Variant(OURS, fusedoptim, {}),
)
VARIANTS = {variant.name: variant for variant in _VARIANTS}
REFERENCE = VARIANTS["torch-forloop"]  # in float64
YARDSTICKS = ("torch-default", "torch-foreach", "torch-fused", "package")
DISTINCT = [name for name in VARIANTS if name != "torch-forloop"]  # which is torch's default on the CPU
