"""What a rule is to everything but its own function: the names of its state and of its options, and their ranges."""

import functools
import inspect
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fusedoptim.reference import storage
from fusedoptim.reference.storage import Storage

State = Mapping[str, Tensor | None]
PARAM = "the parameter"  # what a state may begin with

_WITH_ALL_STATES = {"momentum": 1.0, "amsgrad": True, "centered": True}  # options with which a rule keeps all states
_AT_LEAST_0, _BELOW_1, _ANY = (0.0, math.inf), (0.0, math.nextafter(1.0, 0.0)), (-math.inf, math.inf)
# The least and the most that options may be, in every rule that has one of the name; of others any number.
RANGES: dict[str, tuple[float, float]] = {
    "alpha": _AT_LEAST_0,
    "betas": _BELOW_1,
    "alpha_warmup": _AT_LEAST_0,
    "beta3_warmup": _AT_LEAST_0,
    "decay_lr": (math.ulp(0.0), math.inf),
    "eps": _AT_LEAST_0,
    "lr": _AT_LEAST_0,
    "lr_decay": _AT_LEAST_0,
    "momentum": _AT_LEAST_0,
    "rho": (0.0, 1.0),
    "weight_decay": _AT_LEAST_0,
}


def range_of(option: str) -> tuple[float, float]:
    """The least and the most that an option may be."""
    return RANGES.get(option, _ANY)


def length_of(kind: Any) -> int:
    """How many numbers an option of this type is; 0 for one that is a number itself."""
    return len(typing.get_args(kind))


@dataclass(frozen=True)
class Rule:
    """A rule's function and, for given options, the names of its state."""

    update: Callable[..., tuple[Tensor, dict[str, Tensor]]]
    own_state: Callable[[Mapping[str, Any]], tuple[str, ...]]
    non_negative: frozenset[str] = frozenset()
    """States that are never negative."""
    initial: Mapping[str, str] = field(default_factory=dict)
    """The option that a state begins with, or ``PARAM``, where that is not zero."""
    numbers: Mapping[str, float | str] = field(default_factory=dict)
    """Numbers that it keeps beside ``step``, and what they begin with: a number, or an option."""
    beside_param: bool = False
    """Whether these and ``step`` lie on the parameter's device in any case."""
    advance_group: Callable[[Mapping[str, Any]], dict[str, float]] | None = None
    """What a step makes of options of the group that it writes; ``k`` among them counts the steps."""
    exact: frozenset[str] = frozenset()
    """States that 8 bits cannot keep."""
    filled_in: frozenset[str] = frozenset()
    """Options that a state dict may lack, as of older releases of torch, which fills them in."""

    @functools.cached_property
    def scalars(self) -> frozenset[str]:
        """The names of all numbers: what else is in a state has the parameter's shape, or is its scale."""
        return frozenset({"step", *self.numbers})

    def tensors(self, group: Mapping[str, Any]) -> list[str]:
        """The states of a parameter's shape that the rule keeps."""
        return [name for name in self.own_state(group) if name not in self.scalars]

    def all_states(self) -> tuple[str, ...]:
        """The states of its parameters' shape that it can have."""
        return tuple(self.tensors(_WITH_ALL_STATES))

    def state_names(self, group: Mapping[str, Any], param: Tensor | None = None) -> tuple[str, ...]:
        """What a parameter's state holds, but for scales: what the rule keeps, and then what the group asks for."""
        names = self.own_state(group)
        if group.get("ema_decay") is not None:
            names = (*names, "ema")
        if param is None:
            return names
        if (companion := storage.companion_of(group, param)) is not None:
            names = (*names, storage.COMPANION_NAMES[companion])
        rounds = group.get("stochastic_rounding") and param.dtype == torch.bfloat16
        return (*names, "step") if rounds and "step" not in names and self.advance_group is None else names

    def tensor_names(self, group: Mapping[str, Any], param: Tensor, entry: Mapping[str, Any]) -> list[str]:
        """Of the tensors of a parameter's state but its numbers: scales of what is in 8 bits included."""
        names = [name for name in self.state_names(group, param) if name not in self.scalars]
        return names + [f"{name}_scale" for name in names if f"{name}_scale" in entry]

    def storage_of(self, group: Mapping[str, Any], param: Tensor, state: Mapping[str, Any], number: int) -> Storage:
        """How a parameter and its state are stored; ``number``: its own, among those of all groups."""
        names = self.tensors(group)
        dtypes = {name: state[name].dtype for name in names}
        rounds = bool(group.get("stochastic_rounding"))
        companion = storage.companion_of(group, param)
        stochastic = {
            name
            for name in names
            if dtypes[name] == torch.bfloat16
            and name in self.non_negative
            and (storage.dtype_asked(name, group) == torch.bfloat16 or (rounds and param.dtype == torch.bfloat16))
        }
        return Storage(
            companion,
            {name: name not in self.non_negative for name in names if dtypes[name] == torch.uint8},
            frozenset(stochastic | ({""} if rounds and param.dtype == torch.bfloat16 and not companion else set())),
            {name: index + 2 for index, name in enumerate(names)},
            int(group.get("seed") or 0),
            number,
        )

    def options(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entries of a parameter group that are options of this rule, as bools those annotated so.

        Raises:
            KeyError: The group lacks one of them.
        """
        kinds = options_of(self.update).items()
        return {name: bool(group[name]) if kind is bool else group[name] for name, kind in kinds}


@functools.cache
def options_of(update: Callable[..., Any]) -> dict[str, Any]:
    """The options of a rule, and their types."""
    parameters = inspect.signature(update).parameters.values()
    kinds = typing.get_type_hints(update)
    return {p.name: kinds[p.name] for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
