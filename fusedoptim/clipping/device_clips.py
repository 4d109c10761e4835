"""Clipping and skipping of a step decided on the CUDA device of its gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fusedoptim import backend, native
from fusedoptim.clipping import device_norm
from fusedoptim.clipping.device_norm import DeviceNorm, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass
class DeviceClips:
    """The clipping of each group in a step, and whether the step is skipped, as numbers on the device.

    Args:
        norm: Of the gradients that are clipped, and maybe of others.
        limits: What those of each group are clipped to; None where they are not.
        found_inf: A number that is not 0 where the step must not be taken; or None.
        scalers: The number that ``GradScaler`` has found.
    """

    norm: DeviceNorm
    limits: list[float | None]
    found_inf: Any
    scalers: Any

    def coefficients(self) -> list[Any]:
        """For torch's own implementation: tensors, and 1.0 where nothing is clipped."""
        return [1.0 if limit is None else self.norm.coefficient_there(limit) for limit in self.limits]

    def for_executor(self) -> dict[str, Any]:
        """For the kernels."""
        return {"limits": self.limits, "norm": self.norm.sums, "device": self.norm.index}


def may_be_on_device(groups: Iterable[Any]) -> bool:
    """Whether the first parameter is on a CUDA device. Mostly all are or none is, so this is a quick test.

    Asked only of a module with CUDA kernels.
    """
    if backend.in_use == "native":
        for group in groups:
            for param in group["params"]:
                return native.lies_on_cuda(param)
    return False


def take_clips(
    optimizer: Any, pending: Any, measurable: Callable[[list[Any]], Any], grad_scale: Any, found_inf: Any
) -> DeviceClips | None:
    """Queue what decides about clipping and skipping this step; or None, where the host must decide.

    Args:
        optimizer: Takes the step. Its ``grad_norm`` becomes the norm, if anything is clipped.
        pending: What ``clip_grad_norm_`` has left for this step: a norm and a ``max_norm``; or None.
        measurable: The norm of the gradients of some lists of parameters, not measured.
        grad_scale: What gradients are divided by first; or None.
        found_inf: A number that forbids the step where it is not 0; or None.
    """
    groups = optimizer.param_groups
    limits: list[float | None] = [
        None if (limit := group.get("max_grad_norm")) is None else float(limit) for group in groups
    ]
    skips = any(group.get("skip_nonfinite") for group in groups)
    lists = [group["params"] for group in groups]
    clipped = [limit is not None for limit in limits]
    if pending is not None:
        if not isinstance(pending.norm, DeviceNorm):
            return None
        norm, limits = pending.norm, [pending.max_norm] * len(groups)
        judged = [norm if grad_scale is None else measurable(lists)]
    elif all(clipped) or not any(clipped):
        norm = measurable(lists)
        judged = [norm]
    else:
        judged = [
            measurable([x for x, one in zip(lists, clipped, strict=True) if one is side]) for side in (True, False)
        ]
        if not len(judged[0]):  # nothing that is clipped has a gradient
            limits = [None for _ in groups]
        norm = judged[0] if len(judged[0]) else judged[1]
        judged = [one for one in judged if len(one)]  # either may have no gradients
    if not judged or not all(isinstance(one, DeviceNorm) and one.index == norm.index for one in judged):
        return None
    found = found_inf
    for one in judged if skips else [norm]:
        verdict = _verdict(optimizer, one, found) if skips else None
        if not one.is_measured():
            one.measure(grad_scale, verdict)
        elif verdict is not None:
            one.judge(verdict)
        found = found if verdict is None else verdict.found
    if any(limit is not None for limit in limits):
        optimizer.grad_norm = norm.as_tensor()
    return DeviceClips(norm, limits, found, found_inf)


def _verdict(optimizer: Any, norm: DeviceNorm, before: Any) -> Verdict:
    counts = optimizer.__dict__.setdefault("_skips_on_devices", {})
    if norm.index not in counts:
        if norm.are_captured():
            raise RuntimeError(
                "Attempting CUDA graph capture of step() with skip_nonfinite=True, but the count of skipped steps is "
                "not on the device yet: take a step before the capture"
            )
        counts[norm.index] = torch.zeros((1,), dtype=torch.int64, device=norm.device)
    return Verdict(before, device_norm.empty((1,), torch.float32, norm.device), counts[norm.index])


def skips_on_devices(optimizer: Any) -> int:
    """How many steps were skipped on devices. Waits for them."""
    return sum(int(count.item()) for count in optimizer.__dict__.get("_skips_on_devices", {}).values())


def forget_skips(optimizer: Any) -> None:
    """Reset the counts in place: a CUDA graph may hold their memory."""
    for count in optimizer.__dict__.get("_skips_on_devices", {}).values():
        count.zero_()
