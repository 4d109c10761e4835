"""What else may be watching torch's operations: dispatch modes, function modes, tracing, functorch, forward-mode AD.

The kernels write memory that these never see, so while one is active torch's own implementation takes the step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad as _forward_ad
from torch.utils._device import DeviceContext

from fusedoptim.private import private

_function_modes: Callable[[], int] = private("torch._C._len_torch_function_stack", lambda: 0)
_dispatch_modes: Callable[[], int] = private("torch._C._len_torch_dispatch_stack", lambda: 0)
_functorch_level: Callable[[], Any] = private("torch._C._functorch.peek_interpreter_stack", lambda: None)
_tracing_state: Callable[[], Any] = private("torch._C._get_tracing_state", lambda: None)
_stack: Callable[[], list[Any]] = private("torch.overrides._get_current_function_mode_stack", list)


class _NoLevel:
    _current_level = -1


# Its level is -1 outside of all.
_levels: Any = _forward_ad if hasattr(_forward_ad, "_current_level") else _NoLevel


def any_active() -> bool:
    """Whether any mode is active in this thread, that of the default device included."""
    return bool(
        _function_modes()
        or _dispatch_modes()
        or _levels._current_level >= 0
        or _functorch_level() is not None
        or _tracing_state() is not None
    )


def any_function_mode() -> bool:
    """Whether a TorchFunctionMode is active in this thread, that of the default device included."""
    return bool(_function_modes())


def only_default_device() -> bool:
    """Whether the only modes are those of ``torch.set_default_device`` and ``with torch.device(...)``.

    They choose where new tensors are made, and change no other operation.
    """
    return (
        not _dispatch_modes()
        and _levels._current_level < 0
        and _functorch_level() is None
        and _tracing_state() is None
        and all(type(mode) is DeviceContext for mode in _stack())
    )


without_function_modes: Callable[[], Any] = torch._C.DisableTorchFunction
with_function_modes: Callable[[], Any] = private("torch._C._EnableTorchFunction", torch._C.DisableTorchFunction)
