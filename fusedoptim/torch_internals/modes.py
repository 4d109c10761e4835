"""Modes that intercept torch's operations: dispatch modes, function modes, tracing, functorch, forward-mode AD.

The kernels write memory that these never see, so while one is active torch's own implementation takes the step.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch.autograd import forward_ad as _forward_ad

from fusedoptim.torch_internals.private import private

# How many there are in this thread.
function_mode_count: Callable[[], int] = private("torch._C._len_torch_function_stack", lambda: 0)
_dispatch_mode_count: Callable[[], int] = private("torch._C._len_torch_dispatch_stack", lambda: 0)
# None outside of all.
_functorch_level: Callable[[], Any] = private("torch._C._functorch.peek_interpreter_stack", lambda: None)
_tracing_state: Callable[[], Any] = private("torch._C._get_tracing_state", lambda: None)

_function_modes: Callable[[], list[Any]] = private("torch.overrides._get_current_function_mode_stack", list)
_DeviceContext: Any = private("torch.utils._device.DeviceContext", type(None))
without_function_modes: Callable[[], Any] = private("torch._C.DisableTorchFunction", nullcontext)
with_function_modes: Callable[[], Any] = private("torch._C._EnableTorchFunction", nullcontext)


def no_function_modes() -> Any:
    """For a block in which tensors are looked at: no Python code of a function mode runs."""
    return without_function_modes() if function_mode_count() else nullcontext()


# Functions that return 0 or None where nothing of their kind is active, for the module to ask.
CHECKS: tuple[Callable[[], Any], ...] = (function_mode_count, _dispatch_mode_count, _functorch_level, _tracing_state)


def watch_operations() -> bool:
    """Whether one is active that is not just that of ``torch.set_default_device`` and ``with torch.device(...)``.

    These choose where new tensors are made, and change no other operation.
    """
    return (
        bool(_dispatch_mode_count())
        or getattr(_forward_ad, "_current_level", -1) >= 0
        or _functorch_level() is not None
        or _tracing_state() is not None
        or (bool(function_mode_count()) and any(type(mode) is not _DeviceContext for mode in _function_modes()))
    )
