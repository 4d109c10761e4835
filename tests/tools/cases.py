"""The table that every test runs over. A new optimizer adds its rows to ``CASES`` and nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

import fusedoptim
from fusedoptim import native
from fusedoptim.reference import RULES, Rule

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

CHUNK = 16384  # elements that a thread claims at once: kChunk in csrc/cpu/run.cpp
BLOCK = 2048  # elements between two passes over the gradient: kBlock there
PER_THREAD = 32768  # elements below which there is no further thread: kPerThread there
SMALL_SIZES = [0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65]  # around the vector widths
CHUNK_SIZES = [CHUNK - 1, CHUNK, CHUNK + 1]
BLOCK_SIZES = [BLOCK - 1, BLOCK, BLOCK + 1]

_NOT_OF_THE_RULE = {
    "params",
    "foreach",
    "fused",
    "capturable",
    "differentiable",
    "use_triton",
    "max_grad_norm",
}  # they choose who takes the step


@dataclass(frozen=True, eq=False)
class Case:
    """One optimizer with one set of hyper-parameters."""

    cls: type[Optimizer]
    torch_cls: type[Optimizer]
    kwargs: Mapping[str, Any]
    id: str
    twin: str | None  # torch's "for-loop" or "fused", which rounds where the rule does, or None where none does

    @property
    def rule(self) -> Rule:
        """What the package itself says of the rule."""
        return RULES[self.cls._rule]  # type: ignore[attr-defined]

    @property
    def has_fused_torch(self) -> bool:
        """Whether torch has a fused implementation."""
        return "fused" in self._arguments()

    def flag(self, *names: str) -> dict[str, bool]:
        """The first of these flags that the class has, set; or nothing."""
        return dict.fromkeys([name for name in names if name in self._arguments()][:1], True)

    def _arguments(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.torch_cls).parameters

    def make(self, params: Iterable[Any], **overrides: Any) -> Any:
        """Our optimizer."""
        return ready(self.cls(params, **{**self.kwargs, **overrides}))

    def make_torch(self, params: Iterable[Any], **overrides: Any) -> Any:
        """Torch's own, as its for-loop if ``fused=True`` is not said; on the CPU that one knows no capturable."""
        options = {key: value for key, value in self.kwargs.items() if key != "capturable"}
        for_loop = {name: False for name in ("foreach", "fused") if name in self._arguments()}
        return ready(self.torch_cls(params, **{**options, **for_loop, **overrides}))

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


def ready(optimizer: Any) -> Any:
    """Ready for steps, which some optimizers are only once they are told."""
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def _cases(name: str, table: Mapping[str, Mapping[str, Any]], twin: str | None) -> list[Case]:
    ours = getattr(fusedoptim, name)
    return [
        Case(ours, ours._torch_class, kwargs, f"{name}-{row.replace(' ', '_')}", twin) for row, kwargs in table.items()
    ]


# 1 - 0.8, 1 - 0.983 and 1 - 0.102 * 0.317 are other numbers when computed in float32 than when rounded to it.
_SGD: dict[str, dict[str, Any]] = {
    "defaults": {},
    "lr 0": {"lr": 0.0, "momentum": 0.9},
    "Tensor lr": {"lr": torch.tensor(0.0123), "momentum": 0.9},
    "weight decay": {"lr": 0.0123, "weight_decay": 0.013},
    "momentum": {"lr": 0.0123, "momentum": 0.87},
    "dampening": {"lr": 0.0123, "momentum": 0.87, "dampening": 0.8},
    "dampening alone": {"lr": 0.0123, "dampening": 0.8},
    "nesterov": {"lr": 0.0123, "momentum": 0.87, "nesterov": True},
    "fused": {"lr": 0.0123, "momentum": 0.87, "fused": True},
    "everything": {"lr": 0.0123, "momentum": 0.87, "dampening": 0.8, "weight_decay": 0.013, "maximize": True},
    "everything nesterov": {"lr": 0.0123, "momentum": 0.87, "weight_decay": 0.013, "nesterov": True, "maximize": True},
}
_ADAM: dict[str, dict[str, Any]] = {
    "defaults": {},
    "lr 0": {"lr": 0.0, "weight_decay": 0.013},
    "Tensor lr": {"lr": torch.tensor(0.0123), "weight_decay": 0.013},
    "Tensor betas": {"betas": (torch.tensor(0.87), torch.tensor(0.983))},
    "beta1 half": {"betas": (0.5, 0.99)},
    "beta1 just over half": {"betas": (0.5 + 1e-10, 0.99)},  # 1 - beta1 is 0.5 in float and less in double
    "beta1 0": {"betas": (0.0, 0.99)},
    "betas 0": {"betas": (0.0, 0.0)},
    "eps 0": {"eps": 0.0},
    "weight decay": {"weight_decay": 0.13},
    "no weight decay": {"weight_decay": 0.0},
    "amsgrad": {"amsgrad": True, "betas": (0.9, 0.5)},  # with so short a memory the maximum matters
    "capturable": {"capturable": True},
    "fused": {"fused": True, "weight_decay": 0.013},
    "everything": {
        "lr": 0.102, "betas": (0.8, 0.3), "eps": 1e-5, "weight_decay": 0.317, "amsgrad": True, "maximize": True,
    },
    "everything small beta1": {  # 1 - beta1 >= 0.5: exp_avg is interpolated from the gradient's side
        "lr": 0.102, "betas": (0.45, 0.3), "eps": 1e-5, "weight_decay": 0.317, "amsgrad": True, "maximize": True,
    },
}  # fmt: skip
_ADAM_ONLY: dict[str, dict[str, Any]] = {
    "decoupled": {"weight_decay": 0.13, "decoupled_weight_decay": True},
    "everything decoupled": {**_ADAM["everything"], "decoupled_weight_decay": True},
}
# The rule is Adam's, with other defaults: what is left out here differs from a row there by nothing but these.
_ADAMW = {
    name: _ADAM[name]
    for name in (
        *("defaults", "lr 0", "Tensor lr", "weight decay", "no weight decay", "amsgrad", "capturable", "fused"),
        *("everything", "everything small beta1"),
    )
}
_ADADELTA: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": {"lr": 0.37, "rho": 0.83, "eps": 1e-5, "weight_decay": 0.13, "maximize": True},
}
_ADAGRAD: dict[str, dict[str, Any]] = {
    "defaults": {},
    "fused": {"fused": True},
    "everything": {
        "lr": 0.0123, "lr_decay": 0.3, "weight_decay": 0.13, "initial_accumulator_value": 0.4, "eps": 1e-5,
        "maximize": True,
    },
}  # fmt: skip
_ADAMAX: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": {"lr": 0.102, "betas": (0.4, 0.3), "eps": 1e-5, "weight_decay": 0.317, "maximize": True},
}
_RADAM: dict[str, dict[str, Any]] = {
    "defaults": {},
    "rectified from the third step on": {"betas": (0.9, 0.8)},
    "everything": {"lr": 0.102, "betas": (0.4, 0.8), "eps": 1e-5, "weight_decay": 0.317, "maximize": True},
    "everything decoupled": {
        "lr": 0.102, "betas": (0.8, 0.8), "eps": 1e-5, "weight_decay": 0.317, "maximize": True,
        "decoupled_weight_decay": True,
    },
}  # fmt: skip
_RMSPROP: dict[str, dict[str, Any]] = {
    "defaults": {},
    "momentum": {"momentum": 0.87},
    "centered": {"centered": True, "alpha": 0.83, "eps": 1e-3},  # by a variance of 0 or nearly 0 little may be divided
    "everything": {
        "lr": 0.0123, "alpha": 0.87, "eps": 1e-5, "weight_decay": 0.13, "momentum": 0.8, "centered": True,
        "maximize": True,
    },
}  # fmt: skip
_NADAM: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": {
        "lr": 0.0102, "betas": (0.8, 0.3), "eps": 1e-5, "weight_decay": 0.317, "momentum_decay": 0.03, "maximize": True,
    },
    "everything decoupled": {
        "lr": 0.0102, "betas": (0.4, 0.8), "eps": 1e-5, "weight_decay": 0.317, "momentum_decay": 0.3, "maximize": True,
        "decoupled_weight_decay": True,
    },
}  # fmt: skip
_ASGD: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": {"lr": 0.0123, "lambd": 0.13, "alpha": 0.6, "t0": 1.0, "weight_decay": 0.13, "maximize": True},
}
_ADEMAMIX: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no fast average": {"betas": (0.0, 0.93, 0.97)},
    "everything": {
        "lr": 0.0102, "betas": (0.8, 0.3, 0.95), "alpha": 3.7, "beta3_warmup": 7, "alpha_warmup": 3, "eps": 1e-5,
        "weight_decay": 0.317, "maximize": True,
    },
}  # fmt: skip
_ADAN: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": {"lr": 0.0102, "betas": (0.8, 0.4, 0.9), "eps": 1e-5, "weight_decay": 0.317, "maximize": True},
    "everything no_prox": {
        "lr": 0.0102, "betas": (0.4, 0.8, 0.3), "eps": 1e-5, "weight_decay": 0.317, "no_prox": True, "maximize": True,
    },
}  # fmt: skip
_SCHEDULE: dict[str, Any] = {"warmup_steps": 3, "r": 0.7, "weight_lr_power": 1.3, "maximize": True}
_ADAMW_SCHEDULE_FREE: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": {"lr": 0.0102, "betas": (0.8, 0.3), "eps": 1e-5, "weight_decay": 0.317, **_SCHEDULE},
}
_SGD_SCHEDULE_FREE: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": {"lr": 0.0123, "momentum": 0.7, "weight_decay": 0.13, **_SCHEDULE},
}
_LION: dict[str, dict[str, Any]] = {
    "defaults": {},
    "decoupled": {"lr": 0.0123, "weight_decay": 0.013, "decoupled_weight_decay": True},
    "everything": {"lr": 0.0123, "betas": (0.8, 0.93), "weight_decay": 0.13, "maximize": True},
}
_RPROP: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": {"lr": 0.037, "etas": (0.45, 1.37), "step_sizes": (0.01, 0.06), "maximize": True},
}

CASES = [
    *_cases("SGD", _SGD, "for-loop"),
    *_cases("Adam", {**_ADAM, **_ADAM_ONLY}, "fused"),
    *_cases("AdamW", _ADAMW, "fused"),
    *_cases("Adadelta", _ADADELTA, None),
    *_cases("Adagrad", _ADAGRAD, "fused"),
    *_cases("Adamax", _ADAMAX, "for-loop"),
    *_cases("AdamWScheduleFree", _ADAMW_SCHEDULE_FREE, None),
    *_cases("Adan", _ADAN, None),
    *_cases("AdEMAMix", _ADEMAMIX, None),
    *_cases("ASGD", _ASGD, "for-loop"),
    *_cases("Lion", _LION, None),
    *_cases("NAdam", _NADAM, None),
    *_cases("RAdam", _RADAM, None),
    *_cases("RMSprop", _RMSPROP, None),
    *_cases("Rprop", _RPROP, "for-loop"),
    *_cases("SGDScheduleFree", _SGD_SCHEDULE_FREE, None),
]


def everything() -> list[Case]:
    """Of each class the cases with all hyper-parameters at once: what tests take that look not at rules but drivers."""
    return [case for case in CASES if "everything" in case.id]


def one_per_class() -> list[Case]:
    """The first of ``everything`` of each class."""
    return list({case.cls: case for case in reversed(everything())}.values())[::-1]


# Which differ to a driver: state that may be missing, counts its steps, has variants, begins with a number or as the
# parameter, has numbers beside the step; or the step writes to the group. Another rule is to it one of these.
_DRIVEN = ("SGD", "Adam", "Adagrad", "NAdam", "SGDScheduleFree")


def for_drivers(cases: Sequence[Case]) -> list[Case]:
    """Those of the classes that tests of drivers run over: tests of numbers run over all."""
    return [case for case in cases if case.cls.__name__ in _DRIVEN]


def of_drivers(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """Run a test over ``for_drivers``: Adam in every dtype, the others in float32 and in one of the others in turn.

    What a driver does with a dtype it does for every rule, and tests of numbers have every rule in every dtype.
    """
    chosen = for_drivers(cases)
    full = next((case for case in chosen if case.cls is fusedoptim.Adam), None)
    others = [dtype for dtype in DTYPES if dtype != torch.float32]
    pairs = [
        (case, dtype)
        for i, case in enumerate(chosen)
        for dtype in (DTYPES if case is full else (torch.float32, others[i % len(others)]))
    ]
    return pytest.mark.parametrize(
        ("case", "dtype"), pairs, ids=[f"{name_of(dtype)}-{case.id}" for case, dtype in pairs]
    )


def name_of(dtype: torch.dtype) -> str:
    """As torch says it, without its own name."""
    return str(dtype).removeprefix("torch.")


def of_cases(cases: Sequence[Case] = CASES) -> pytest.MarkDecorator:
    """Run a test over cases."""
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


of_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=map(name_of, DTYPES))


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
