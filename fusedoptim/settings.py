"""What a step does besides the update, as asked for in the constructor or in the param groups."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from fusedoptim import modes
from fusedoptim.clip import GradNorm

# By name, what each is unless it is asked for: only then is it in the groups, so that a state dict is torch's.
DEFAULTS: dict[str, Any] = {"max_grad_norm": None, "skip_nonfinite": False}


def constructor(cls: type[Any], torchs: type[Any]) -> Callable[..., None]:
    """The ``__init__`` of a class, with torch's signature and the settings behind it."""

    @functools.wraps(torchs.__init__)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        super(cls, self).__init__(*args, **kwargs)

    signature = inspect.signature(torchs.__init__)
    own = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=x) for name, x in DEFAULTS.items()]
    __init__.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *own])  # type: ignore[attr-defined]
    return __init__


def set_up(optimizer: Any, **settings: Any) -> None:
    """Put what was asked for into the defaults and the groups that do not ask for something else."""
    asked = {name: value for name, value in settings.items() if value != DEFAULTS[name]}
    optimizer.defaults.update(asked)
    for group in optimizer.param_groups:
        for name, value in asked.items():
            group.setdefault(name, value)
    _check(optimizer.param_groups)


def _check(groups: Iterable[Mapping[str, Any]]) -> None:
    for index, group in enumerate(groups):
        limit = group.get("max_grad_norm")
        if limit is not None and not float(limit) >= 0:
            raise ValueError(f"max_grad_norm must be None or at least 0, got {limit!r} in parameter group {index}")


def has_settings(groups: list[Any]) -> bool:
    """Whether any group asks for clipping or for skipping."""
    for group in groups:  # noqa: SIM110  # of each step, and a generator takes three times as long
        if "max_grad_norm" in group or "skip_nonfinite" in group:
            return True
    return False


class _NextClip:
    """The clipping of the next step."""

    def __init__(self, norm: GradNorm, coefficient: float) -> None:
        self.norm, self.coefficient = norm, coefficient


def offer_norm(optimizer: Any, norm: GradNorm, grad_scale: float | None) -> None:
    """Say what the norm of all gradients is, all of which are finite, before the next step looks for it.

    Args:
        optimizer: Whose gradients they are.
        norm: As measured; owned by the caller, and good for as long as it is.
        grad_scale: What it was measured under, which the step has yet to divide by.
    """
    optimizer.__dict__["_offered_norm"] = weakref.ref(norm), grad_scale


def _take_offered_norm(optimizer: Any, grad_scale: float | None) -> GradNorm | None:
    reference, scale = optimizer.__dict__.pop("_offered_norm", (None, None))
    norm = None if reference is None or scale != grad_scale else reference()
    if norm is None or not norm.is_of([group["params"] for group in optimizer.param_groups]):
        return None
    return norm if norm.is_still_theirs() else None


def clip_next_step(optimizer: Any, max_norm: float, norm_type: float, error_if_nonfinite: bool) -> Tensor:
    """See ``FusedStep.clip_grad_norm_``."""
    optimizer.__dict__.pop("_next_clip", None)
    if modes.watch_operations():
        params = [p for group in optimizer.param_groups for p in group["params"]]
        return torch.nn.utils.clip_grad_norm_(params, max_norm, norm_type, error_if_nonfinite)
    with torch.no_grad(), no_function_modes():
        norm = _take_offered_norm(optimizer, None) if norm_type == 2.0 else None
        if norm is None:
            norm = GradNorm([group["params"] for group in optimizer.param_groups], norm_type)
            norm.measure()
        if error_if_nonfinite:
            norm.check_finite()
        optimizer.__dict__["_next_clip"] = _NextClip(norm, norm.coefficient(float(max_norm)))
        return norm.as_tensor()


def take_clips(optimizer: Any, grad_scale: Any) -> list[Any] | None:
    """What the gradients of each group are multiplied by in this step; or None, if the step is to be skipped."""
    groups = optimizer.param_groups
    pending = optimizer.__dict__.get("_next_clip")
    if modes.watch_operations():
        return _torchs_clips(optimizer, grad_scale)
    _check(groups)
    scale = None if grad_scale is None else float(grad_scale)
    limits = [group.get("max_grad_norm") for group in groups]
    with torch.no_grad(), no_function_modes():
        if pending is not None and not pending.norm.is_still_theirs():
            warnings.warn(
                "clip_grad_norm_() was called, and gradients were written or replaced since: this step does not clip. "
                "Call it right before step()",
                stacklevel=5,
            )
            pending = None
        offered = _take_offered_norm(optimizer, scale)
        if pending is not None:
            norm = pending.norm
            clips = [pending.coefficient] * len(groups)
        else:
            if offered is not None and len({limit is None for limit in limits}) == 1:  # all are clipped, or none
                norm = offered
            else:
                clipped = [g["params"] for g, limit in zip(groups, limits, strict=True) if limit is not None]
                norm = GradNorm(clipped)
                norm.measure(scale)
            clips = [1.0 if limit is None else norm.coefficient(float(limit)) for limit in limits]
        if any(limit is not None for limit in limits):
            optimizer.grad_norm = norm.as_tensor()
        if offered is None and any(group.get("skip_nonfinite") for group in groups):
            rest = GradNorm([group["params"] for group, limit in zip(groups, limits, strict=True) if limit is None])
            if pending is None:
                rest.measure(scale)
            if not (math.isfinite(norm.norm) and (pending is not None or math.isfinite(rest.norm))):
                optimizer.skipped_steps += 1
                return None
    return clips


def _torchs_clips(optimizer: Any, grad_scale: Any) -> list[Any]:
    """The same by torch's operations alone, which a mode of torch watches."""
    groups = optimizer.param_groups
    limits = [group.get("max_grad_norm") for group in groups]
    params = [p for group, limit in zip(groups, limits, strict=True) if limit is not None for p in group["params"]]
    grads = [p.grad if grad_scale is None else p.grad / grad_scale for p in params if p.grad is not None]
    optimizer.grad_norm = norm = get_total_norm(grads)
    return [1.0 if limit is None else torch.clamp(limit / (norm + 1e-6), max=1.0) for limit in limits]


def no_function_modes() -> Any:
    """For a block in which tensors are looked at: no Python code of a mode runs."""
    return modes.without_function_modes() if modes.function_mode_count() else nullcontext()
