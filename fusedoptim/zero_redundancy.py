"""ZeroRedundancyOptimizer makes an optimizer in each process, of a part of the parameters, and says so to nobody."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any

_MODULE = "torch.distributed.optim.zero_redundancy_optimizer"
_CURES = {
    "max_grad_norm": "clip before the step, by fusedoptim.clip_grad_norm_(model.parameters(), {value})",
    "skip_nonfinite": "step if the norm that fusedoptim.clip_grad_norm_(model.parameters(), ...) returns is finite",
}


def refuse_settings(groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise if an optimizer within a ZeroRedundancyOptimizer, by which this is called, is asked to look at the norm.

    Each process would see the norm of its own part, clip by that, and go on by itself after a step that was left out.

    Raises:
        ValueError: So it is.
    """
    if _MODULE not in sys.modules or not _is_called_from(_MODULE):
        return
    for index, group in enumerate(groups):
        for name, cure in _CURES.items():
            value = group.get(name)
            if value is not None and value is not False:
                raise ValueError(
                    f"{name}={value!r} in parameter group {index}: within ZeroRedundancyOptimizer each process has a "
                    f"part of the parameters, and would know the norm of that alone; {cure.format(value=value)}"
                )


def _is_called_from(module: str) -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == module:
            return True
        frame = frame.f_back
    return False
