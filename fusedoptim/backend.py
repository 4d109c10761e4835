"""Which implementation takes the step: the compiled kernels or the pure-Python reference."""

from __future__ import annotations

import os
import warnings
from types import TracebackType
from typing import Any, Protocol

from fusedoptim import native
from fusedoptim.reference.executor import ReferenceExecutor

_NAMES = ("auto", "native", "reference")
_chosen, in_use = "auto", "reference"
_warned = False


class StepExecutor(Protocol):
    """One step: the fast path in one call, or the general path: ``prepare``, which changes nothing, then ``apply``."""

    backend: str
    torch_parts: tuple[tuple[str, Any], ...]

    def fast_step(
        self, optimizer: Any, zero_grad: bool, grad_scale: float | None, set_grads_to_none: bool, clips: Any
    ) -> bool:
        """Take the whole step and return True; or change nothing and return False."""

    def measuring_step(
        self, optimizer: Any, zero_grad: bool, grad_scale: float | None, set_grads_to_none: bool, skip_nonfinite: bool
    ) -> tuple[bool, float | None, tuple[str, ...]] | None:
        """As ``fast_step``, for groups with clipping or skipping: it measures the norm itself.

        Returns:
            None if it has changed nothing; else whether the step was skipped, the norm of the gradients that were to be
            clipped, if there are any, and their dtypes.
        """

    def is_ours(self, optimizer: Any) -> bool:
        """Whether it is known without looking further that nothing asks for torch's own step."""

    def prepare(
        self, groups: list[Any], state: dict[Any, Any], new_state: Any, write_grads: bool, clips: Any = ()
    ) -> list[list[Any]] | None:
        """Return None, or for each group the parameters that torch's own implementation must take."""

    def is_skipped_by_host(self) -> bool:
        """Whether what was prepared can only be skipped by the host, not by a number on a device."""

    def apply(
        self,
        state: dict[Any, Any],
        zero_grad: bool,
        grad_scale: Any = None,
        found_inf: Any = None,
        set_to_none_in: Any = None,
    ) -> bool:
        """Take the step that was prepared; or write nothing and return False, where a tensor was replaced since.

        With ``found_inf``, a tensor on a device, the step is taken only if that is 0.

        Then set the gradients of ``set_to_none_in``, groups, to None. A signal handler prevents all of it or nothing.
        """

    def zero_grads(self, groups: list[Any], even_if_watched: bool = False) -> bool:
        """Write zeros over all gradients; or return False, where a mode of torch is active, unless told to go on."""

    def explain(self, groups: list[Any], state: dict[Any, Any], new_state: Any) -> list[tuple[int, int, str, str]]:
        """For each parameter with a gradient: its group, its index, which path takes it, and why no faster one."""

    def clear(self) -> None:
        """Forget what was prepared."""


class set_backend:  # noqa: N801
    """Choose the implementation for the whole process; as a context manager, until the block ends.

    Args:
        name: ``"auto"``, the kernels, or where the compiled module is missing the reference, with one warning;
            ``"native"``, the kernels or an error; ``"reference"``, the pure-Python path, which returns the same bits.
            The environment variable ``FUSEDOPTIM_BACKEND`` sets it at the start.

    Raises:
        ValueError: ``name`` is none of these.
        RuntimeError: ``"native"`` is asked for and the compiled module is missing.

    Example:
        >>> import fusedoptim as optim
        >>> with optim.set_backend("reference"):
        ...     optim.get_backend()
        'reference'
    """

    def __init__(self, name: str) -> None:
        if name not in _NAMES:
            raise ValueError(f"backend must be one of {', '.join(_NAMES)}, got {name!r}")
        if name == "native" and not native.available():
            raise RuntimeError(native.why_missing())
        self._previous = _chosen
        _choose(name)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _choose(self._previous)


def _choose(name: str) -> None:
    global _chosen, in_use
    _chosen = name
    in_use = "native" if _chosen != "reference" and native.available() else "reference"


def get_backend() -> str:
    """The implementation in use: ``"native"`` or ``"reference"``."""
    return in_use


def new_executor(rule: str, kernels_demanded: bool, torch_parts: tuple[tuple[str, Any], ...]) -> StepExecutor:
    """An executor of the implementation in use.

    Args:
        rule: The name of the rule.
        kernels_demanded: The user has set ``fused=True``.
        torch_parts: The methods that the step of torch's class calls, by name.

    Raises:
        RuntimeError: The kernels are demanded, and the compiled module is missing.
    """
    global _warned
    if get_backend() == "native":
        return native.NativeExecutor(rule, torch_parts)
    if _chosen != "reference":
        if kernels_demanded:
            raise RuntimeError(f"fused=True, but {native.why_missing()}")
        if not _warned:
            _warned = True
            warnings.warn(f"fusedoptim runs on its slow reference path: {native.why_missing()}", stacklevel=4)
    return ReferenceExecutor(rule, torch_parts)


_choose("auto")
if os.environ.get("FUSEDOPTIM_BACKEND"):
    set_backend(os.environ["FUSEDOPTIM_BACKEND"])
