"""Settings beyond torch's options: clipping, averages and storage, from the constructor or the param groups."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from fusedoptim.clipping.sharding_engines import refuse_settings
from fusedoptim.reference.parameters import flag_for_torch, name_of
from fusedoptim.reference.rules import RULES
from fusedoptim.reference.storage import dtype_asked

# Defaults. A setting is in the groups only where it differs, so that other state dicts have torch's format.
DEFAULTS: dict[str, Any] = {
    "max_grad_norm": None,
    "skip_nonfinite": False,
    "ema_decay": None,
    "state_dtype": None,
    "master_weights": False,
    "kahan_sum": False,
    "stochastic_rounding": False,
    "seed": 0,
}
EXCLUSIVE = ("master_weights", "kahan_sum", "stochastic_rounding")  # of which a group has one at most
STORAGE = ("state_dtype", *EXCLUSIVE)
_STATE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, "8bit")

_DOC = """        max_grad_norm (float, optional): clip the gradients of each step by their global norm: that of
            all parameters whose groups have a limit. The step clips as it reads; ``p.grad`` stays as
            it is (default: None, no clipping)
        skip_nonfinite (bool, optional): leave out steps for which a gradient is infinite or NaN, and
            count them in ``skipped_steps`` (default: False)
        ema_decay (float, optional): after each step, ``ema = lerp(ema, param, 1 - ema_decay)``, for
            ``averaged_parameters`` and ``copy_averages_to``; at first the parameter after its first
            step (default: None, no averages)
        state_dtype (torch.dtype, str or dict, optional): how state is stored: torch.float32,
            torch.bfloat16 (second moments are rounded stochastically), torch.float16, ``"8bit"`` (in
            blocks of 256; tensors below 4,096 elements in float32), or a dict of these by the names of
            the states (default: None, in the dtype of the parameter)
        master_weights (bool or str, optional): keep a copy of bfloat16 and float16 parameters in float32,
            which the step updates and rounds into the parameter; ``"remainder"``: the 16 bits that a
            bfloat16 parameter lacks of it, to the same results. State is in float32 then, unless
            ``state_dtype`` says otherwise (default: False)
        kahan_sum (bool, optional): keep what bfloat16 and float16 parameters lose by rounding, in their
            own dtype, and add it in the next step (default: False)
        stochastic_rounding (bool, optional): round bfloat16 parameters, and second moments in bfloat16,
            up or down at random, so that small updates count in the mean (default: False)
        seed (int, optional): of the random bits, which depend on nothing else but the step, the parameter's
            number and the place of the element (default: 0)"""


def constructor(cls: type[Any], torchs: type[Any]) -> Callable[..., None]:
    """The ``__init__`` of a class: torch's signature, followed by the settings.

    Where that has ``max_grad_norm`` itself, it is the setting: of 0, which means None in the packages that have it.
    """
    signature = inspect.signature(torchs.__init__)
    has_norm = "max_grad_norm" in signature.parameters

    @functools.wraps(torchs.__init__)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        if has_norm:
            known = {name: value for name, value in kwargs.items() if name in signature.parameters}
            bound = signature.bind(self, *args, **known)
            bound.apply_defaults()
            kwargs = {**bound.arguments, **kwargs}
            args = (kwargs.pop("self"),)[1:]
            kwargs["max_grad_norm"] = bound.arguments["max_grad_norm"] or None
        super(cls, self).__init__(*args, **kwargs)

    own = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=x)
        for name, x in DEFAULTS.items()
        if name not in signature.parameters
    ]
    __init__.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *own])  # type: ignore[attr-defined]
    return __init__


def with_settings(torchs: str | None) -> str | None:
    """The docstring of a class with the settings added to its arguments, behind which notes and links may follow."""
    before, mark, rest = (torchs or "").partition("    Args:\n")
    arguments, note, notes = rest.partition("\n    .. ")
    return f"{before}{mark}{arguments.rstrip()}\n{_DOC}\n{note}{notes}" if mark else torchs


def set_up(optimizer: Any, **settings: Any) -> None:
    """Put the settings into the defaults, and into the groups that do not set their own."""
    for name, value in settings.items():
        _check_one(name, value, "")
    asked = {name: value for name, value in settings.items() if value is not DEFAULTS[name]}
    optimizer.defaults.update(asked)
    for group in optimizer.param_groups:
        for name, value in asked.items():
            group.setdefault(name, value)
    check(optimizer.param_groups)
    check_storage(optimizer, optimizer.param_groups)


def check(groups: list[Any]) -> None:
    """Raise if a group has an invalid setting, or one that needs gradients of other processes."""
    for index, group in enumerate(groups):
        check_values(group, index)
    if has_settings(groups):
        refuse_settings(groups)


def check_values(group: Any, index: int, names: Iterable[str] = DEFAULTS) -> None:
    """Raise if a group has an invalid setting of these names, or settings that exclude each other."""
    for name in names:
        if name in group:
            _check_one(name, group[name], f" in parameter group {index}")
    _check_together(group, f" in parameter group {index}")


def _check_one(name: str, value: Any, where: str) -> None:
    problem = problem_of(name, value)
    if problem is not None:
        raise ValueError(f"{name} must be {problem}, got {value!r}{where}")


def problem_of(name: str, value: Any) -> str | None:
    """What a setting must be, if ``value`` is not valid; else None."""
    if name in ("skip_nonfinite", "kahan_sum", "stochastic_rounding"):
        return None if isinstance(value, bool) else "True or False"
    if name == "master_weights":
        return None if isinstance(value, bool) or value == "remainder" else 'True, False or "remainder"'
    if name == "seed":
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return None if is_whole and 0 <= value < 2**64 - 1 else "an integer from 0 to 2**64 - 2"
    if name == "state_dtype":
        values = value.values() if isinstance(value, dict) else [value]
        fits = all(x is None or any(x is y or (isinstance(x, str) and x == y) for y in _STATE_DTYPES) for x in values)
        return None if fits else 'None, torch.float32, torch.bfloat16, torch.float16, "8bit" or a dict of these'
    most = 1.0 if name == "ema_decay" else math.inf
    try:
        fits = value is None or (not isinstance(value, (str, bytes)) and 0 <= float(value) <= most)
    except (TypeError, ValueError, RuntimeError):
        fits = False
    if fits:
        return None
    return "None or a number of at least 0" if most == math.inf else f"None or a number from 0 to {most:g}"


def _check_together(group: Any, where: str) -> None:
    asked = [name for name in EXCLUSIVE if group.get(name)]
    if len(asked) > 1:
        raise ValueError(f"{asked[0]} and {asked[1]} exclude each other, got both{where}: set one to False")


def check_storage(optimizer: Any, groups: list[Any], first: int = 0) -> None:
    """Raise if groups, of which ``first`` is the number of the first, ask for a storage that cannot be.

    That is one which their parameters, or the rule's states, cannot have.
    """
    rule = RULES[optimizer._rule]
    for index, group in enumerate(groups, first):
        asked = group.get("state_dtype")
        known = rule.all_states()
        unknown = [name for name in asked if name not in known] if isinstance(asked, dict) else []
        if unknown:
            raise ValueError(
                f"state_dtype must name states of {list(known)}, got {unknown[0]!r} in parameter group {index}"
            )
        inexact = [name for name in known if name in rule.exact and dtype_asked(name, group) == "8bit"]
        if inexact:
            raise ValueError(
                f'state_dtype must not be "8bit" for {inexact[0]}, of which this rule needs more digits, got {asked!r} '
                f"in parameter group {index}: use torch.bfloat16"
            )
        for position, param in enumerate(group["params"]):
            if param.dtype == torch.float64 and asked is not None:
                what = f"state_dtype must be None for float64 parameters, got {asked!r}"
            elif param.dtype == torch.float16 and group.get("master_weights") == "remainder":
                what = 'master_weights="remainder" is for bfloat16 parameters only; True is for float16 as well'
            else:
                continue
            raise ValueError(f"{what}, in {name_of(param, group, index, position)}")
        if any(group.get(name) for name in STORAGE) and (flag := flag_for_torch(group)) is not None:
            name = next(name for name in STORAGE if group.get(name))
            raise ValueError(
                f"{name} needs this package's own step, but parameter group {index} has {flag}: leave it out"
            )


def has_settings(groups: list[Any]) -> bool:
    """Whether any group asks for clipping or for skipping."""
    for group in groups:  # noqa: SIM110  # called in each step, where a generator takes three times as long
        if "max_grad_norm" in group or "skip_nonfinite" in group:
            return True
    return False
