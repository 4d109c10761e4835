"""Checks of a state dict's entries and options. torch loads nearly everything, and fails later or never."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fusedoptim.checkpoints.keys import StateError
from fusedoptim.checkpoints.storage import COMPANIONS, is_in_8bit, problem_of_companion, problem_of_scale
from fusedoptim.reference.rule import Rule, length_of, options_of, range_of
from fusedoptim.settings import DEFAULTS, problem_of

PLAIN = (Tensor, torch.nn.Parameter)
_SET_RIGHT = "the file is damaged; set it right in the dict"
ENTRY = "the file is damaged, or is not of an optimizer"

_MOST = torch.finfo(torch.float32).max
MOST_STEPS = 2.0**53  # beyond it, not even float64 counts
_OF_OTHERS = ("exp_avg", "state1")  # what other libraries' SGD keeps for a buffer, and torch's Adam for a moment
_DEPTH = 50
_OTHER_MODEL = "load the file of the same model, or remove this parameter's entry to start its state afresh"


def nothing_loaded(problem: StateError) -> str:
    """The message of an error."""
    where, what, hint = problem.args
    return f"{where}: {what}; {hint}. Nothing was loaded"


def format_value(value: Any) -> str:
    """Describe any value in a few words, for an error."""
    try:
        if isinstance(value, Tensor):
            return f"a tensor of shape {'nested' if value.is_nested else tuple(value.shape)}, {value.dtype}"
        return f"{reprlib.repr(value)} ({type(value).__name__})"
    except Exception:
        return f"an object of {type(value).__name__}"


def check_group(group: Mapping[str, Any], rule: Rule, count: int, where: str) -> None:
    """Check the hyper-parameters of one group.

    Args:
        group: As in the file.
        rule: Whose options it must hold.
        count: How many parameters it has.
        where: The place in the state dict, for errors.

    Raises:
        StateError: What is wrong.
    """
    for name, value in group.items():
        if name != "params" and _is_too_deep(value):
            raise StateError(f"{where}[{name!r}]", f"has more than {_DEPTH} levels", ENTRY)
    for name, kind in options_of(rule.update).items():
        if name in group:
            _check_option(name, kind, group[name], f"{where}[{name!r}]")
        elif name not in rule.filled_in:
            raise StateError(where, f"has no {name!r}", "was it saved by another optimizer? Load it with that one")
    if "maximize" in group:
        _check_option("maximize", bool, group["maximize"], f"{where}['maximize']")
    for name in DEFAULTS:
        must_be = problem_of(name, group[name]) if name in group else None
        if must_be is not None:
            raise StateError(f"{where}[{name!r}]", f"must be {must_be}, got {format_value(group[name])}", _SET_RIGHT)
    names = group.get("param_names")
    if names is not None and (not isinstance(names, (list, tuple)) or len(names) != count):
        raise StateError(f"{where}['param_names']", f"must have {count} names, got {format_value(names)}", ENTRY)


def _check_option(name: str, kind: Any, value: Any, where: str) -> None:
    hint = _SET_RIGHT
    if kind is bool:
        if not _is_flag(value):
            raise StateError(where, f"must be True or False, got {format_value(value)}", hint)
        return
    low, high = range_of(name)
    if length := length_of(kind):
        if not isinstance(value, (list, tuple)) or len(value) != length:
            how_many = "a pair of" if length == 2 else "three"
            raise StateError(where, f"must be {how_many} numbers, got {format_value(value)}", hint)
        for position, item in enumerate(value):
            if not low <= _number(item) <= high:
                range_ = "at least 0 and less than 1" if high < 1 else "a number"
                raise StateError(f"{where}[{position}]", f"must be {range_}, got {format_value(item)}", hint)
        return
    low, high = max(low, -_MOST), min(high, _MOST)
    if not low <= _number(value) <= high:
        range_ = f"from {low:g} to {high:.2g}" if low >= 0 else f"of no more than {high:.2g}"
        raise StateError(where, f"must be a number {range_}, got {_with_value(value)}", hint)


def _is_flag(value: Any) -> bool:
    try:
        return hasattr(type(value), "__bool__") and bool(value) in (False, True)
    except Exception:  # an object may raise anything
        return False


def _number(value: Any) -> float:
    """The value as a number, NaN if it is none."""
    try:
        if isinstance(value, (str, bytes)) or (isinstance(value, Tensor) and value.numel() != 1):
            return math.nan
        return float(value.detach() if isinstance(value, Tensor) else value)
    except Exception:  # an object may raise anything
        return math.nan


def _with_value(value: Any) -> str:
    return f"{format_value(value)}, {_number(value)}" if isinstance(value, Tensor) else format_value(value)


def check_entry(
    entry: Any,
    param: Tensor,
    names: Sequence[str],
    own_names: Sequence[str],
    scalars: Collection[str],
    where: str,
    name_of: Callable[[], str],
) -> None:
    """Check the state of one parameter, before torch casts it.

    Args:
        entry: As in the file.
        param: The parameter.
        names: What its group keeps for it.
        own_names: Those of the rule, which must be there; others begin with the next step.
        scalars: Which of them are numbers.
        where: The place in the state dict, for errors.
        name_of: Says which parameter it is, for errors.

    Raises:
        StateError: What is wrong.
    """
    if not isinstance(entry, Mapping):
        raise StateError(f"{where}, for {name_of()}", f"must be a dict, got {format_value(entry)}", ENTRY)
    for key, value in entry.items():
        if not isinstance(value, Tensor) and _is_too_deep(value):
            raise StateError(f"{where}[{key!r}], for {name_of()}", f"has more than {_DEPTH} levels", ENTRY)
    for name in names if entry else ():
        value = entry.get(name)
        problem = None
        if value is None:
            others = [key for key in _OF_OTHERS if key in entry]
            if name not in own_names:
                continue
            if len(own_names) > 1:
                problem = "is missing"
            elif others:
                problem = f"is missing, but {others[0]!r} is there: convert_state_dict knows what some libraries save"
        elif name in scalars:
            problem = _problem_of_number(value, param)
        elif not isinstance(value, Tensor):
            problem = f"must be a tensor, got {format_value(value)}"
        elif type(param) in PLAIN:
            problem = _problem_of_tensor(value, param, name, name in own_names and is_in_8bit(entry, name))
            if problem is None and value.dtype == torch.uint8:
                problem = problem_of_scale(entry[f"{name}_scale"], value)
                name = f"{name}_scale"
        if problem is not None:
            raise StateError(f"{where}[{name!r}], for {name_of()}", problem, _OTHER_MODEL)


def _problem_of_number(value: Any, param: Tensor) -> str | None:
    if isinstance(value, Tensor):
        if value.is_nested or value.layout != torch.strided or value.is_quantized or value.numel() != 1:
            return f"must be one number, got {format_value(value)}, {value.layout}"
        if type(value) not in PLAIN or (value.is_meta and param.is_meta):  # their numbers cannot be read here
            return None
        if value.is_complex() or value.dtype == torch.bool:
            return f"must be a real number, got {format_value(value)}"
    if not 0 <= _number(value) <= MOST_STEPS:
        return f"must be a number from 0 to 2**53, got {_with_value(value)}"
    return None


def _problem_of_tensor(value: Tensor, param: Tensor, name: str, is_coded: bool) -> str | None:
    if value.is_nested:
        return "is a nested tensor"
    if value.shape != param.shape:
        return f"has shape {tuple(value.shape)}, which is not that of the parameter"
    if value.layout != torch.strided and not (value.layout == torch.sparse_coo and name == "momentum_buffer"):
        return f"has layout {value.layout}"  # with sparse gradients, SGD's buffer is sparse
    if value.is_meta and not param.is_meta:
        return "is on the device 'meta', which has no numbers"
    if name in COMPANIONS:
        return problem_of_companion(value, param, name)
    if is_coded:
        return None
    if param.is_floating_point() and not value.is_floating_point():
        return f"has dtype {value.dtype}, which is not a floating one"
    if param.is_complex() and not value.is_complex():
        return f"has dtype {value.dtype}, which is not a complex one"
    return None


def _is_too_deep(value: Any) -> bool:
    """Whether containers are nested too deeply for torch, which traverses them by recursion."""
    level = [value]
    for _ in range(_DEPTH):
        containers = {id(each): each for each in level if isinstance(each, (dict, list, tuple, set))}
        if not containers:
            return False
        level = [x for each in containers.values() for x in (each.values() if isinstance(each, dict) else each)]
    return True
