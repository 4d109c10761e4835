"""What a step clips by, and whether it is taken, as the settings of the groups say, or a ``clip_grad_norm_`` before."""

from __future__ import annotations

import functools
import math
import sys
import warnings
import weakref
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from fusedoptim import native
from fusedoptim.clipping import device_clips
from fusedoptim.clipping.device_clips import DeviceClips
from fusedoptim.clipping.device_norm import DeviceNorm
from fusedoptim.clipping.norm import GradNorm, common_scalar, norm_of
from fusedoptim.clipping.sharding_engines import refuse_fsdp1, refuse_settings
from fusedoptim.settings import check, has_settings
from fusedoptim.torch_internals import modes
from fusedoptim.torch_internals.dtensor import has_dtensors


def may_measure(optimizer: Any) -> bool:
    """Whether the step may measure the norm itself: no norm was offered, and this process has all gradients."""
    if "_offered_norm" in optimizer.__dict__:
        return False
    refuse_settings(optimizer.param_groups)
    return True


def clips_next_step(optimizer: Any) -> bool:
    """Whether the next step may clip or be skipped."""
    return "_next_clip" in optimizer.__dict__ or has_settings(optimizer.param_groups)


class _NextClip:
    """The clipping of the next step."""

    def __init__(self, norm: GradNorm | DeviceNorm, max_norm: float) -> None:
        self.norm, self.max_norm = norm, max_norm


def offer_norm(optimizer: Any, norm: GradNorm, grad_scale: float | None) -> None:
    """Offer the norm of all gradients, all finite, to the next step, which then need not measure it.

    Args:
        optimizer: Whose gradients they are.
        norm: As measured. The caller owns it; the offer lasts as long as it lives.
        grad_scale: The scale it was measured under, by which the step has yet to divide.
    """
    optimizer.__dict__["_offered_norm"] = weakref.ref(norm), grad_scale


def _take_offered_norm(optimizer: Any, grad_scale: float | None) -> GradNorm | None:
    reference, scale = optimizer.__dict__.pop("_offered_norm", (None, None))
    norm = None if reference is None or scale != grad_scale else reference()
    return norm if norm is not None and norm.is_still_theirs(_params_of(optimizer.param_groups)) else None


def clip_next_step(optimizer: Any, max_norm: float, norm_type: float, error_if_nonfinite: bool) -> Tensor:
    """See ``FusedStep.clip_grad_norm_``."""
    optimizer.__dict__.pop("_next_clip", None)
    refuse_fsdp1(optimizer.param_groups, max_norm)
    if modes.watch_operations():
        params = [p for group in optimizer.param_groups for p in group["params"]]
        return torch.nn.utils.clip_grad_norm_(params, max_norm, norm_type, error_if_nonfinite)
    with torch.no_grad(), modes.no_function_modes():
        norm: Any = _take_offered_norm(optimizer, None) if norm_type == 2.0 else None
        if norm is None:
            norm = norm_of(_params_of(optimizer.param_groups), norm_type, optimizer)
            norm.measure()
        if error_if_nonfinite:
            norm.check_finite()
        optimizer.__dict__["_next_clip"] = _NextClip(norm, float(max_norm))
        total: Tensor = norm.as_tensor()
        return total


def take_clips(optimizer: Any, grad_scale: Any, found_inf: Any = None) -> list[Any] | DeviceClips | None:
    """What the gradients of each group are multiplied by in this step; or None, if the step is to be skipped.

    ``DeviceClips`` stay on the device, with the decision whether the step is taken: the host does not wait.
    """
    groups = optimizer.param_groups
    check(groups)
    pending = optimizer.__dict__.get("_next_clip")
    if pending is not None and not pending.norm.is_still_theirs(_params_of(groups)):
        warnings.warn(
            "clip_grad_norm_() was called, and gradients were written or replaced since: this step does not clip. "
            "Call it right before step()",
            stacklevel=_level_of_caller(),
        )
        del optimizer.__dict__["_next_clip"]
        pending = None
    with torch.no_grad():
        if modes.watch_operations():
            clips, norm, is_finite = _torchs_clips(groups, grad_scale, pending)
        else:
            with modes.no_function_modes():
                if native.has_cuda and device_clips.may_be_on_device(groups):
                    measurable = functools.partial(norm_of, optimizer=optimizer)
                    found = device_clips.take_clips(optimizer, pending, measurable, grad_scale, found_inf)
                    if found is not None:
                        return found
                scale = None if grad_scale is None else float(grad_scale)
                clips, measured, is_finite = _clips(groups, scale, pending, _take_offered_norm(optimizer, scale))
                norm = None if measured is None else measured.as_tensor()
    if norm is not None:
        optimizer.grad_norm = norm
    if not is_finite:
        optimizer.__dict__["_skipped_steps"] = optimizer.__dict__.get("_skipped_steps", 0) + 1
        return None
    return clips


def note_measured(
    optimizer: Any, is_skipped: bool, norm: float | None, dtypes: tuple[str, ...], check: Any = None
) -> bool:
    """Note what ``fast_step`` has measured, of gradients of these dtypes, and return whether the step was taken.

    ``check``: of a scaler, which counts skipped steps by itself; or None.
    """
    if norm is not None and not (is_skipped and check is not None):
        optimizer.grad_norm = common_scalar(norm, [getattr(torch, dtype) for dtype in dtypes], torch.device("cpu"))
    if is_skipped and check is not None:
        check.note_inf()
    elif is_skipped:
        optimizer.__dict__["_skipped_steps"] = optimizer.__dict__.get("_skipped_steps", 0) + 1
    return not is_skipped


def _level_of_caller() -> int:
    """The ``stacklevel`` of the user's line that called step(): the first frame outside of this package and torch."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("fusedoptim", "torch"):
        frame, level = frame.f_back, level + 1
    return level


def expected_clips(optimizer: Any, grad_scale: float | None) -> list[float]:
    """What ``take_clips`` should return for a step that is not skipped, measured by the reference."""
    groups, pending = optimizer.param_groups, optimizer.__dict__.get("_next_clip")
    with torch.no_grad(), modes.no_function_modes():
        if pending is not None and pending.norm.is_still_theirs(_params_of(groups)):
            norm = GradNorm(_params_of(groups), pending.norm.norm_type, by_reference=True)
            norm.measure()
            pending = _NextClip(norm, pending.max_norm)
        else:
            pending = None
        return _clips(groups, grad_scale, pending, by_reference=True)[0]


def _clips(
    groups: list[Any],
    grad_scale: float | None,
    pending: _NextClip | None,
    offered: GradNorm | None = None,
    by_reference: bool = False,
) -> tuple[list[float], GradNorm | DeviceNorm | None, bool]:
    """The coefficient of each group, the norm if anything is clipped, and whether the step may be taken."""
    limits = [group.get("max_grad_norm") for group in groups]
    if pending is not None:
        norm = pending.norm
        clips = [norm.coefficient(pending.max_norm)] * len(groups)
        # Norms of other orders do not show it: order 0 is finite with NaN, order 3 overflows.
        rest = [] if norm.norm_type == 2.0 and grad_scale is None else _params_of(groups)
        is_finite = norm.is_finite or bool(rest)
    elif offered is not None and len({limit is None for limit in limits}) == 1:  # all are clipped, or none
        norm, rest, is_finite = offered, [], offered.is_finite
        clips = [1.0 if limit is None else norm.coefficient(float(limit)) for limit in limits]
    else:
        norm = GradNorm(_params_of(groups, [limit is not None for limit in limits]), by_reference=by_reference)
        norm.measure(grad_scale)
        clips = [1.0 if limit is None else norm.coefficient(float(limit)) for limit in limits]
        rest = _params_of(groups, [limit is None for limit in limits])
        is_finite = norm.is_finite
    if any(group.get("skip_nonfinite") for group in groups):
        together = bool(rest) and has_dtensors(_params_of(groups))  # so that all processes decide alike
        if together or (is_finite and rest):
            others = GradNorm(_params_of(groups) if together else rest, by_reference=by_reference)
            others.measure(grad_scale)
            is_finite = others.is_finite
    else:
        is_finite = True
    clipping = pending is not None or any(limit is not None for limit in limits)
    return clips, norm if clipping else None, is_finite


def _torchs_clips(
    groups: list[Any], grad_scale: Any, pending: _NextClip | None
) -> tuple[list[Any], Tensor | None, bool]:
    """The same by torch's operations alone, under a mode that intercepts them."""

    def norm_of(lists: list[Any]) -> Tensor:
        grads = [p.grad for params in lists for p in params if p.grad is not None]
        return get_total_norm(grads if grad_scale is None else [grad / grad_scale for grad in grads])

    is_finite = True
    if any(group.get("skip_nonfinite") for group in groups):
        with suppress(RuntimeError):  # the mode's tensors may have no values, as fake tensors
            is_finite = math.isfinite(float(norm_of(_params_of(groups))))
    limits = [group.get("max_grad_norm") for group in groups]
    if pending is not None:
        return [pending.norm.coefficient(pending.max_norm)] * len(groups), pending.norm.as_tensor(), is_finite
    if all(limit is None for limit in limits):
        return [1.0] * len(groups), None, is_finite
    norm = norm_of(_params_of(groups, [limit is not None for limit in limits]))
    clips = [1.0 if limit is None else torch.clamp(limit / (norm + 1e-6), max=1.0) for limit in limits]
    return clips, norm, is_finite


def _params_of(groups: list[Any], chosen: list[bool] | None = None) -> list[Any]:
    """The parameters of each group, or of those that are chosen."""
    return [group["params"] for i, group in enumerate(groups) if chosen is None or chosen[i]]
