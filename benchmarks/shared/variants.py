"""The optimizers, and the implementations of them that are compared."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import torch

import fusedoptim
from benchmarks.shared.measure import Call, nothing


@dataclass(frozen=True)
class Rule:
    """An optimizer and the arguments it is benchmarked with."""

    class_name: str  # in `torch.optim` as in `fusedoptim`
    state: tuple[str, ...]  # the tensors it keeps per parameter, by their names in `optimizer.state`
    options: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments beside `lr`

    @property
    def operands(self) -> int:  # tensors that a step looks at for each parameter: itself, its gradient and its state
        return 2 + len(self.state)

    @property
    def accesses(self) -> int:  # of an element in a step, which reads all operands and writes all but the gradient
        return 2 * self.operands - 1

    bytes_per_element = property(lambda self: 4 * self.accesses)


_ADAMS = ("exp_avg", "exp_avg_sq")
_MOMENTUM = Rule("SGD", ("momentum_buffer",), {"momentum": 0.9})
RULES = {"sgd": _MOMENTUM, "adam": Rule("Adam", _ADAMS), "adamw": Rule("AdamW", _ADAMS)}
# Those that the question of the step alone takes as well. RAdam is rectified from the third step on.
MORE_RULES = {"adadelta": Rule("Adadelta", ("square_avg", "acc_delta")), "adagrad": Rule("Adagrad", ("sum",)),
              "adamax": Rule("Adamax", ("exp_avg", "exp_inf")), "radam": Rule("RAdam", _ADAMS, {"betas": (0.9, 0.7)}),
              "rmsprop": Rule("RMSprop", ("square_avg",)), "rprop": Rule("Rprop", ("prev", "step_size"))}  # fmt: skip
# What a check of three steps must see, it sees: a maximum that is not the average, a decay that is no rounding error.
_AMSGRAD = Rule("Adam", (*_ADAMS, "max_exp_avg_sq"), {"amsgrad": True, "betas": (0.9, 0.5)})
ALL_RULES = RULES | MORE_RULES | {"adamw-decay": Rule("AdamW", _ADAMS, {"weight_decay": 0.5}), "adam-amsgrad": _AMSGRAD,
                                  "sgd-plain": Rule("SGD", ())}  # fmt: skip
LABELS = {"adam": "Adam", "adamw-decay": "AdamW", "adam-amsgrad": "Adam, amsgrad", "sgd-plain": "SGD",
          "sgd": "SGD, momentum"}  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Variant:
    name: str  # as in tables and on the command line
    module: ModuleType  # where its classes live
    flags: Mapping[str, bool]  # the constructor arguments that choose the implementation

    @property
    def is_ours(self) -> bool:
        return self.module is fusedoptim

    def has(self, rule: str) -> bool:  # whether the class of a rule has this implementation
        cls = getattr(self.module, ALL_RULES[rule].class_name)
        return self.flags.keys() <= inspect.signature(cls).parameters.keys()

    def build(self, rule: str, params: Iterable[torch.Tensor], lr: float, **settings: Any) -> Any:
        kind = ALL_RULES[rule]
        return getattr(self.module, kind.class_name)(params, lr=lr, **{**kind.options, **self.flags, **settings})

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
ALL = (
    Variant("torch-forloop", torch.optim, {"foreach": False}),
    Variant("torch-default", torch.optim, {}),
    Variant("torch-foreach", torch.optim, {"foreach": True}),
    Variant("torch-fused", torch.optim, {"fused": True}),
    Variant(OURS_CALLS, fusedoptim, {}),
    Variant(OURS, fusedoptim, {}),
)
VARIANTS = {variant.name: variant for variant in ALL}
REFERENCE = VARIANTS["torch-forloop"]  # in float64
YARDSTICKS = ("torch-default", "torch-foreach", "torch-fused")
DISTINCT = [name for name in VARIANTS if name != "torch-forloop"]  # which is torch's default on the CPU
