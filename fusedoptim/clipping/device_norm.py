"""The norm of gradients on one CUDA device: measured and used there, so the host never waits for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusedoptim import backend, native
from fusedoptim.clipping.grads import check_finite, coefficient

if TYPE_CHECKING:
    from fusedoptim.clipping.norm import GradNorm

_driver: Any = None  # of the norms that belong to no optimizer


def on_device(norm: GradNorm, optimizer: Any = None) -> DeviceNorm | None:
    """The same norm, to be measured on the device; None unless all gradients lie on one and its kernels take them.

    Args:
        norm: Not measured, of gradients some of which are not plain memory of the CPU.
        optimizer: Keeps the tables that the device reads.
    """
    if norm.norm_type != 2.0 or norm.by_reference or norm.is_sharded or len(norm.others) != len(norm):
        return None
    if not native.has_cuda or backend.in_use != "native":
        return None
    driver = _driver_of(optimizer)
    grads = native.device_grads(norm.others, driver)
    return None if grads is None else DeviceNorm(norm, grads, driver)


def _driver_of(optimizer: Any) -> Any:
    global _driver
    if optimizer is not None:
        if "_norm_driver" not in optimizer.__dict__:
            optimizer.__dict__["_norm_driver"] = native.norm_driver()
        return optimizer.__dict__["_norm_driver"]
    if _driver is None:
        _driver = native.norm_driver()
    return _driver


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory of torch's allocator."""
    return torch.empty(shape, dtype=dtype, device=device)


@dataclass
class Verdict:
    """Whether a step may be taken, as a number on the device.

    Args:
        before: A number that is not 0 where it may not, whatever the norm; or None.
        found: A float32, which becomes 1 where it may not, else 0.
        skipped: An int64, which is raised where the norm alone forbids it; or None.
    """

    before: Any
    found: Tensor
    skipped: Tensor | None = None


class DeviceNorm:
    """As ``GradNorm``, of order 2, of gradients that lie on one CUDA device. What returns a float waits for it.

    Attributes:
        others: All of the gradients.
        device: Where they lie.
        index: The device's number.
        sums: Of squares, on the device, float64; the first is the norm.
    """

    norm_type = 2.0

    def __init__(self, norm: GradNorm, grads: Any, driver: Any) -> None:
        self._grads, self._driver = grads, driver
        self.others = norm.others
        self.is_still_theirs = norm.is_still_theirs
        self.dtypes = norm.dtypes
        self.device = self.others[0].device
        self.index: int = grads.device
        self.sums = empty((grads.scratch_size(),), torch.float64, self.device)
        self._rounded: Tensor | None = None

    def __len__(self) -> int:
        return len(self.others)

    def measure(self, grad_scale: Any = None, verdict: Verdict | None = None, store: bool = False) -> None:
        """Queue what finds the norm, of quotients by ``grad_scale`` if that is given, and stores these if it should."""
        dtype = self.others[0].dtype if self._grads.have_one_dtype() else torch.float32
        self._rounded = empty((), dtype, self.device)
        self._grads.measure(self._driver, self.sums, self._rounded, grad_scale, store, *_parts_of(verdict))

    def judge(self, verdict: Verdict) -> None:
        """Queue what judges by the norm."""
        self._grads.judge(self._driver, self.sums, *_parts_of(verdict))

    def is_measured(self) -> bool:
        """Whether ``measure`` was called."""
        return self._rounded is not None

    def clip(self, max_norm: float) -> None:
        """Queue what multiplies the gradients in place, so that their norm is at most ``max_norm``."""
        if not self.share_memory():
            self._grads.clip(self._driver, self.sums, max_norm)
            return
        coefficient = self.coefficient_there(max_norm)
        for grad in self.others:  # one after the other, as a loop over them would
            grad.mul_(coefficient)

    def share_memory(self) -> bool:
        """Whether any two of the gradients do."""
        return bool(self._grads.share_memory())

    def are_captured(self) -> bool:
        """Whether what is queued becomes part of a CUDA graph."""
        return bool(self._grads.are_captured(self._driver))

    def as_tensor(self) -> Tensor:
        """The norm as torch returns it, on the device, in the type common to all gradients."""
        assert self._rounded is not None
        return self._rounded

    @property
    def norm(self) -> float:
        """In float64, before clipping."""
        return float(self.sums[0])

    @property
    def is_finite(self) -> bool:
        """Whether all gradients are."""
        return math.isfinite(self.norm)

    def check_finite(self) -> None:
        """Raise what torch raises if the norm is not finite."""
        check_finite(self.norm, self.norm_type)

    def coefficient(self, max_norm: float) -> float:
        """What gradients are multiplied by so that their norm is at most ``max_norm``."""
        return coefficient(self.norm, max_norm)

    def coefficient_there(self, max_norm: float) -> Tensor:
        """The same, on the device, in float64."""
        return torch.clamp(max_norm / (self.sums[0] + 1e-6), max=1.0)


def _parts_of(verdict: Verdict | None) -> tuple[Any, Any, Any]:
    return (None, None, None) if verdict is None else (verdict.before, verdict.found, verdict.skipped)
