"""Settings beyond torch's options: clipping, skipping and averages, from the constructor or the param groups."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

from fusedoptim.clipping.sharding_engines import refuse_settings

# Defaults. A setting is in the groups only where it differs, so that other state dicts have torch's format.
DEFAULTS: dict[str, Any] = {"max_grad_norm": None, "skip_nonfinite": False, "ema_decay": None}

_DOC = """        max_grad_norm (float, optional): clip the gradients of each step by their global norm: that of
            all parameters whose groups have a limit. The step clips as it reads; ``p.grad`` stays as
            it is (default: None, no clipping)
        skip_nonfinite (bool, optional): leave out steps for which a gradient is infinite or NaN, and
            count them in ``skipped_steps`` (default: False)
        ema_decay (float, optional): after each step, ``ema = lerp(ema, param, 1 - ema_decay)``, for
            ``averaged_parameters`` and ``copy_averages_to``; at first the parameter after its first
            step (default: None, no averages)"""


def constructor(cls: type[Any], torchs: type[Any]) -> Callable[..., None]:
    """The ``__init__`` of a class: torch's signature, followed by the settings."""

    @functools.wraps(torchs.__init__)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        super(cls, self).__init__(*args, **kwargs)

    signature = inspect.signature(torchs.__init__)
    own = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=x) for name, x in DEFAULTS.items()]
    __init__.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *own])  # type: ignore[attr-defined]
    return __init__


def with_settings(torchs: str | None) -> str | None:
    """The docstring of torch's class with the settings added to its arguments."""
    before, mark, rest = (torchs or "").partition("\n\n    .. note:: The foreach and fused implementations")
    return f"{before}\n{_DOC}{mark}{rest}" if mark else torchs


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


def check(groups: list[Any]) -> None:
    """Raise if a group has an invalid setting, or one that needs gradients of other processes."""
    for index, group in enumerate(groups):
        for name in DEFAULTS:
            if name in group:
                _check_one(name, group[name], f" in parameter group {index}")
    if has_settings(groups):
        refuse_settings(groups)


def _check_one(name: str, value: Any, where: str) -> None:
    problem = problem_of(name, value)
    if problem is not None:
        raise ValueError(f"{name} must be {problem}, got {value!r}{where}")


def problem_of(name: str, value: Any) -> str | None:
    """What a setting must be, if ``value`` is not valid; else None."""
    if name == "skip_nonfinite":
        return None if isinstance(value, bool) else "True or False"
    most = 1.0 if name == "ema_decay" else math.inf
    try:
        fits = value is None or (not isinstance(value, (str, bytes)) and 0 <= float(value) <= most)
    except (TypeError, ValueError, RuntimeError):
        fits = False
    if fits:
        return None
    return "None or a number of at least 0" if most == math.inf else f"None or a number from 0 to {most:g}"


def has_settings(groups: list[Any]) -> bool:
    """Whether any group asks for clipping or for skipping."""
    for group in groups:  # noqa: SIM110  # called in each step, where a generator takes three times as long
        if "max_grad_norm" in group or "skip_nonfinite" in group:
            return True
    return False
