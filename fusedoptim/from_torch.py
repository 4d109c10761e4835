"""``from_torch``: converts a live ``torch.optim`` optimizer in place; it stays the same object."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import lr_scheduler as torch_schedulers

import fusedoptim
from fusedoptim.step import FusedStep


def from_torch(optimizer: Optimizer) -> Any:
    """Turn a ``torch.optim`` optimizer into the one of this package with the same name, in place.

    The object stays the same one, with its parameters, state tensors, groups and hooks: whatever holds it (learning
    rate schedulers, a ``GradScaler``, a trainer) goes on with this package's step. ``foreach=True`` and ``fused=False``
    were a choice among torch's implementations and become None, in the groups and in ``defaults``; ``fused=True``,
    ``capturable`` and ``differentiable`` stay.

    Args:
        optimizer: An instance of exactly a class of ``torch.optim`` that this package has kernels for, such as
            ``torch.optim.AdamW``. One of this package is returned as it is.

    Returns:
        ``optimizer`` itself.

    Raises:
        TypeError: It is something else; the message says what to do.
        RuntimeError: Its ``step`` was replaced on the instance by something other than a torch scheduler.

    Example:
        >>> import torch
        >>> import fusedoptim
        >>> optimizer = torch.optim.Adam([torch.ones(3, requires_grad=True)])
        >>> fusedoptim.from_torch(optimizer) is optimizer, type(optimizer)
        (True, <class 'fusedoptim.adam.Adam'>)
    """
    if isinstance(optimizer, FusedStep):
        return optimizer
    ours = _ours(type(optimizer))
    if ours is None:
        known = ", ".join(sorted(name for name in dir(torch.optim) if _ours(getattr(torch.optim, name)) is not None))
        raise TypeError(f"optimizer must be exactly one of torch.optim's {known}, got {_describe(optimizer)}")
    patched = optimizer.__dict__.get("step")
    if patched is not None and not _is_schedulers(patched, type(optimizer)):
        raise RuntimeError(
            f"the step of this optimizer was replaced by {_function_name(patched)}, which would go on calling torch's; "
            "call from_torch before whatever replaces it"
        )
    optimizer.__class__ = ours
    for options in (optimizer.defaults, *optimizer.param_groups):
        if options.get("foreach"):
            options["foreach"] = None
        if options.get("fused") is not None and not options["fused"]:
            options["fused"] = None
    optimizer._patch_step_function()  # the labels for profilers
    if patched is not None:
        optimizer.step = _as_schedulers_do(optimizer)  # type: ignore[method-assign]
    return optimizer


def can_convert(optimizer: Any) -> bool:
    """Whether ``from_torch`` takes it, as far as its class says."""
    return _ours(type(optimizer)) is not None


def _ours(theirs: type[Any]) -> type[FusedStep] | None:
    """The class of this package that stands for one of torch."""
    ours = getattr(fusedoptim, getattr(theirs, "__name__", ""), None)
    known = isinstance(ours, type) and issubclass(ours, FusedStep) and ours._torch_class is theirs
    return ours if known else None


def _describe(optimizer: Any) -> str:
    name = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
    if isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        return f"{name}; pass its .optimizer"
    for base in type(optimizer).__mro__:
        if _ours(base) is not None:
            return f"{name}, a subclass that may take steps of its own; derive it from fusedoptim.{base.__name__}"
    if type(optimizer).__module__.startswith("torch.optim."):
        return f"{name}, which this package does not replace; keep it as it is"
    if isinstance(optimizer, Optimizer):
        return f"{name}; make a new one and load its state through fusedoptim.convert_state_dict"
    return f"{name}; pass the optimizer"


def _is_schedulers(step: Any, theirs: type[Optimizer]) -> bool:
    """Whether it is torch's step as a torch scheduler wraps it, and nothing around it."""
    code = getattr(step, "__code__", None)
    return (
        getattr(step, "_wrapped_by_lr_sched", False)
        and code is not None
        and code.co_filename == torch_schedulers.__file__
        and inspect.unwrap(step) is inspect.unwrap(theirs.step)
    )


def _function_name(function: Any) -> str:
    code = getattr(inspect.unwrap(function, stop=lambda f: hasattr(f, "__code__")), "__code__", None)
    place = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    return f"{code.co_name if code is not None else type(function).__name__}{place}"


def _as_schedulers_do(optimizer: Any) -> Callable[..., Any]:
    """Our step, in the wrapper by which a scheduler knows whether the optimizer has taken a step before it."""
    function: Any = type(optimizer).step
    reference = weakref.ref(optimizer)

    @functools.wraps(function)
    def step(*args: Any, **kwargs: Any) -> Any:
        optimizer = reference()
        optimizer._opt_called = True  # type: ignore[union-attr]
        return function(optimizer, *args, **kwargs)

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    return step
