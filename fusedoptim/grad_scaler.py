"""Loss scaling in one pass over the gradients: torch's scaler with this package's check and division."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.amp import grad_scaler

from fusedoptim import native
from fusedoptim.clipping.device_clips import may_be_on_device
from fusedoptim.clipping.device_norm import DeviceNorm, Verdict
from fusedoptim.clipping.norm import GradNorm, norm_of
from fusedoptim.clipping.step_clips import offer_norm
from fusedoptim.settings import has_settings
from fusedoptim.step import FusedStep
from fusedoptim.torch_internals import hooks, modes
from fusedoptim.torch_internals.private import has_method

_PARAMETERS = ["self", "optimizer", "inv_scale", "found_inf", "allow_fp16"]


class GradScaler(torch.amp.GradScaler):
    """As ``torch.amp.GradScaler``, and quicker with the optimizers of this package.

    The pass over the gradients that looks for infinity and NaN finds their norm as well, with which ``max_grad_norm``,
    ``skip_nonfinite`` or a call of ``optimizer.clip_grad_norm_`` goes on. Where the scaler divides, in ``unscale_`` and
    in a step without ``fused=True``, it does so in the same pass.

    Gradients are divided by the scale and rounded once; torch multiplies by its reciprocal. While the scale is a power
    of two, as it is by default, the bits are torch's.

    On a CUDA device nothing waits. There ``unscale_`` divides and checks in one pass, and a quotient that is infinite
    counts as a gradient that is, which with a scale below 1 may be another; a step measures what it clips anew.

    It is torch's altogether with optimizers of other classes, on the CPU with a scale below 1, and where gradients are
    neither all plain memory of the CPU nor all on one CUDA device, of float32, bfloat16 or float16.

    Example:
        >>> import fusedoptim, torch
        >>> p = torch.nn.Parameter(torch.ones(4))
        >>> optimizer = fusedoptim.SGD([p], lr=0.5, max_grad_norm=1.0)
        >>> scaler = fusedoptim.GradScaler("cpu", init_scale=8.0)
        >>> scaler.scale(p.sum()).backward()
        >>> scaler.step(optimizer)
        >>> scaler.update()
        >>> p.grad, optimizer.grad_norm, scaler.get_scale()
        (tensor([1., 1., 1., 1.]), tensor(2.), 8.0)
    """

    def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """As torch's; a step of this package that divides by itself also looks for infinity and NaN by itself."""
        has_closure = args or "closure" in kwargs  # which torch refuses, or which may write gradients
        can_check = self._enabled and not has_closure and _is_plain_step(optimizer)
        check = self._check_in_step(optimizer) if can_check else None
        if check is None:
            return super().step(optimizer, *args, **kwargs)
        # From here on what torch's does with an optimizer that divides, but for what it asks of one it does not know.
        state = self._per_optimizer_states[id(optimizer)]
        state["found_inf_per_device"] = {check.found.device: check.found}
        attributes = optimizer.__dict__
        given = getattr(optimizer, "grad_scale", None)
        optimizer.grad_scale = self._scale if given is None else self._scale * given
        optimizer.found_inf = check.found
        attributes["_check_within"] = check
        try:
            result = optimizer.step(**kwargs)
        finally:
            unasked = attributes.pop("_check_within", None)
        if unasked is not None:
            check.finds()
        state["stage"] = grad_scaler.OptState.STEPPED
        del optimizer.grad_scale, optimizer.found_inf
        return result

    def _check_in_step(self, optimizer: Any) -> _Check | None:
        """The check of a step that can make it; None if torch's ``step`` is to see to it."""
        states = getattr(self, "_per_optimizer_states", None)
        if states is None or states[id(optimizer)]["stage"] is not grad_scaler.OptState.READY:
            return None
        if _where(optimizer) != "cpu" or not _has_grads(optimizer):
            return None
        self._check_scale_growth_tracker("step")
        scale = self._scale_of_step(optimizer)
        return _Check(self, optimizer, scale) if scale >= 1 else None  # below, quotients may be infinite

    def _scale_of_step(self, optimizer: Any) -> float:
        """What a step divides by: the product with a scale of the user's, which torch rounds to float32."""
        scale, given = self.get_scale(), getattr(optimizer, "grad_scale", None)
        return scale if given is None else float(torch.tensor(scale, dtype=torch.float32) * given)

    # torch calls it from unscale_(), and with allow_fp16, a scale of 1, to check for a step that divides by itself.
    def _unscale_grads_(
        self, optimizer: Any, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        found: dict[torch.device, Tensor] | None = None
        where = _where(optimizer)
        if where == "cpu":
            scale = self._scale_of_step(optimizer) if allow_fp16 else self.get_scale()
            # Below 1 quotients may be infinite where gradients are not.
            found = self._check_now(optimizer, scale, allow_fp16) if scale >= 1 else None
        elif where == "cuda":
            found = self._check_on_device(optimizer, allow_fp16)
        return super()._unscale_grads_(optimizer, inv_scale, found_inf, allow_fp16) if found is None else found

    def _check_now(self, optimizer: Any, scale: float, only_check: bool) -> dict[torch.device, Tensor] | None:
        """Check, and divide unless ``only_check``, in one pass; or return None where that is left to torch."""
        states = getattr(self, "_per_optimizer_states", None)
        if states is None or modes.watch_operations():
            return None
        with torch.no_grad(), modes.no_function_modes():
            norm = GradNorm([group["params"] for group in optimizer.param_groups])
            dtypes = norm.dtypes()
            if not norm.are_plain() or (torch.float16 in dtypes and not only_check):
                return None
            if not dtypes:
                return {}
            if only_check:
                norm.measure(scale)
            else:
                norm.unscale(scale)
            cpu = torch.device("cpu")
            if not math.isfinite(norm.norm):
                if torch.float64 not in dtypes:
                    return {cpu: torch.ones((), dtype=torch.float32, device=cpu)}
                # Finite float64 may have squares that are not.
                one, found = (torch.full((), x, dtype=torch.float32, device=cpu) for x in (1.0, 0.0))
                return super()._unscale_grads_(optimizer, one, found, True)
        if not only_check or has_settings(optimizer.param_groups):
            states[id(optimizer)]["grad_norm"] = norm  # which owns the gradients, until update() drops it
            offer_norm(optimizer, norm, scale if only_check else None)
        return {cpu: torch.zeros((), dtype=torch.float32, device=cpu)}

    def _check_on_device(self, optimizer: Any, only_check: bool) -> dict[torch.device, Tensor] | None:
        """The same, queued on the device of all gradients."""
        if modes.watch_operations():
            return None
        with torch.no_grad(), modes.no_function_modes():
            norm = norm_of([group["params"] for group in optimizer.param_groups], optimizer=optimizer)
            if not isinstance(norm, DeviceNorm):
                return None
            if not only_check and (torch.float16 in norm.dtypes() or norm.share_memory()):
                return None
            found = torch.empty((), dtype=torch.float32, device=norm.device)
            norm.measure(None if only_check else self._get_scale_async(), Verdict(None, found), store=not only_check)
            return {norm.device: found}


class _Check:
    """The check for infinity and NaN, done by the step, which reads the gradients anyway.

    Attributes:
        found: 1 once something is found, else 0: what the scaler reads after the step.
    """

    def __init__(self, scaler: GradScaler, optimizer: Any, scale: float) -> None:
        self._scaler, self._optimizer, self._scale = scaler, optimizer, scale
        self.found = torch.zeros((), dtype=torch.float32, device="cpu")

    def note_inf(self) -> None:
        """The step has found something, and changed nothing."""
        self.found.fill_(1.0)

    def finds(self) -> bool:
        """Check now, in a separate pass."""
        scaler, optimizer = self._scaler, self._optimizer
        found = scaler._check_now(optimizer, self._scale, only_check=True)
        if found is None:
            one, zero = (torch.full((), x, dtype=torch.float32, device="cpu") for x in (1.0, 0.0))
            found = torch.amp.GradScaler._unscale_grads_(scaler, optimizer, one, zero, True)
        self.found.copy_(sum(found.values(), torch.zeros_like(self.found)))
        return bool(self.found)


def _where(optimizer: Any) -> str | None:
    """The type of device on which gradients are looked at here; None where that is left to torch."""
    first = None
    if isinstance(optimizer, FusedStep):
        first = next((param for group in optimizer.param_groups for param in group["params"]), None)
    if first is None:
        return None
    if native.has_cuda and may_be_on_device(optimizer.param_groups):
        return "cuda"
    return "cpu" if first.device.type == "cpu" else None  # checking each would cost time


def _has_grads(optimizer: Any) -> bool:
    params = (param for group in optimizer.param_groups for param in group["params"])
    return any(param.device.type == "cpu" and param.grad is not None for param in params)


def _is_plain_step(optimizer: Any) -> bool:
    """Whether ``optimizer.step()`` is ours, divides by the scale, and nobody looks at gradients before or after it."""
    return (
        isinstance(optimizer, FusedStep)
        and type(optimizer).step is FusedStep.step
        and bool(getattr(optimizer, "_step_supports_amp_scaling", False))
        and not (hooks.pre_hooks or hooks.post_hooks)
        and not (optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)
    )


if not (  # then the scaler is torch's
    has_method(torch.amp.GradScaler, "_unscale_grads_", _PARAMETERS)
    and has_method(torch.amp.GradScaler, "_check_scale_growth_tracker", ["self", "funcname"])
    and hasattr(grad_scaler, "OptState")
):
    del GradScaler._unscale_grads_, GradScaler.step
