"""What all optimizers of this package share: ``step``, ``zero_grad`` and what else users call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from fusedoptim import native, settings
from fusedoptim.averages import averaged, copy_averages
from fusedoptim.checkpoints.load import load
from fusedoptim.clipping import step_clips
from fusedoptim.clipping.device_clips import forget_skips, skips_on_devices
from fusedoptim.torch_internals import hooks, modes
from fusedoptim.torch_internals.hooks import label, post_hooks, pre_hooks
from fusedoptim.torch_internals.private import private
from fusedoptim.update import Update

_ZERO_GRAD = (None, "to_zero", "to_none")
_HAS_MODULE = native.available()  # asked once: each zero_grad needs it

_disable_dynamo: Callable[[Any], Any] = private("torch._compile._disable_dynamo", torch.compiler.disable)


class FusedStep(Update):
    """Takes torch's optimizer of the same name as its second base and replaces ``step`` and ``zero_grad``.

    A subclass names its rule and torch's class. Everything else (constructor, checks, defaults, hooks, the format of
    the state) is torch's own.
    """

    grad_norm: Tensor | None = None
    """The norm of all gradients before the last step clipped them, 0-dimensional; None before the first."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        torchs = cls.__dict__.get("_torch_class")
        if torchs is not None:
            if "__init__" not in cls.__dict__:
                cls.__init__ = settings.constructor(cls, torchs)  # type: ignore[method-assign]
            names = inspect.unwrap(torchs.step).__code__.co_names
            cls._torch_parts = tuple((x, getattr(torchs, x)) for x in names if callable(getattr(torchs, x, None)))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        asked = {name: kwargs.pop(name) for name in settings.DEFAULTS if name in kwargs}
        super().__init__(*args, **kwargs)
        settings.set_up(self, **asked)
        for group in self.param_groups:
            if any(map(group.get, settings.STORAGE)):  # torch's Adagrad has made its state already
                self.state.update({p: self._new_state(p, group) for p in group["params"] if p in self.state})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch does; its settings are checked, and if they cannot be it is not added."""
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        try:
            settings.check_values(added, len(self.param_groups) - 1)
            settings.check_storage(self, [added], len(self.param_groups) - 1)
        except ValueError:
            del self.param_groups[-1]
            raise

    @property
    def skipped_steps(self) -> int:
        """How many steps ``skip_nonfinite`` has left out. Waits for the device where steps are skipped there."""
        return int(self.__dict__.get("_skipped_steps", 0)) + skips_on_devices(self)

    @skipped_steps.setter
    def skipped_steps(self, count: int) -> None:
        forget_skips(self)
        self.__dict__["_skipped_steps"] = count

    # Takes whatever it is called with, for hooks are to see what the caller has passed.
    def step(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # noqa: D417
        """Update all parameters that have a gradient.

        The step happens whole or not at all: every error is raised before anything is written.

        Args:
            closure: Reevaluates the model and returns the loss.
            zero_grad: What becomes of the gradients: None leaves them; ``"to_zero"`` writes zeros over them in the
                same pass over memory; ``"to_none"`` drops them. Equal, bit for bit, to ``step()`` followed by
                ``zero_grad(set_to_none=False)`` or ``zero_grad(set_to_none=True)``, but that
                gradients whose elements share memory cannot be zeroed here.

        Returns:
            What ``closure`` returned, or None.

        Raises:
            TypeError: ``closure`` cannot be called.
            ValueError: ``zero_grad`` is none of these, or one of ``betas`` lies outside of [0, 1).
            RuntimeError: A group has ``fused=True`` and a parameter that the kernels cannot take, other than a tensor
                subclass, which torch's fused implementation takes; the message names both the parameter and the
                reason. Or elements of a parameter share memory, or those of a gradient
                that is to be zeroed or unscaled. Or the options of a group give a number that the arithmetic cannot
                hold, or a step count is negative.
            KeyError: The state of a parameter is incomplete.
        """
        if torch.compiler.is_dynamo_compiling():
            return _outside_graph(FusedStep.step, self, *args, **kwargs)
        if pre_hooks or self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks or post_hooks:
            return hooks.step_with_hooks(self, *args, **kwargs)
        with label(self._step_label):
            loss = self._take_step(*args, **kwargs)
            self._optimizer_step_code()  # where torch's profiler looks at the optimizer
            if self._optimizer_step_post_hooks or post_hooks:  # registered during the step
                hooks.call_post_hooks(self, (self, *args), kwargs)
        return loss

    step.hooked = True  # type: ignore[attr-defined]  # torch need not wrap it: it calls the hooks itself

    def _take_step(self, closure: Callable[[], Any] | None = None, *, zero_grad: str | None = None) -> Any:
        loss = None
        if zero_grad not in _ZERO_GRAD:
            raise ValueError(f'zero_grad must be None, "to_zero" or "to_none", got {zero_grad!r}')
        if closure is not None:
            if not callable(closure):
                meant = f"; zero_grad={closure!r} is a keyword argument" if isinstance(closure, str) else ""
                raise TypeError(f"closure must be callable, got {closure!r}{meant}")
            with torch.enable_grad():
                loss = closure()

        if zero_grad is None:
            self._update(False)
        elif type(self).zero_grad is not FusedStep.zero_grad or "zero_grad" in self.__dict__:
            self._update(False)
            self.zero_grad(set_to_none=zero_grad == "to_none")
        elif not self._update(zero_grad == "to_zero", zero_grad == "to_none"):
            self._reset_gradients(set_to_none=zero_grad == "to_none")
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters, in one call.

        Args:
            set_to_none: Drop the gradients; otherwise write zeros over them.

        Raises:
            TypeError: ``set_to_none`` is a string: what ``step(zero_grad=...)`` takes.
        """
        if torch.compiler.is_dynamo_compiling():
            _outside_graph(FusedStep.zero_grad, self, set_to_none)
            return
        if set_to_none is not True and set_to_none is not False and isinstance(set_to_none, str):
            hint = 'step(zero_grad="to_zero") is what takes a string'
            raise TypeError(f"set_to_none must be True or False, got {set_to_none!r}; {hint}")
        with label(self._zero_grad_profile_name):
            self._reset_gradients(set_to_none)

    def _patch_step_function(self) -> None:
        super()._patch_step_function()
        self._step_label = f"Optimizer.step#{type(self).__name__}.step"

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a ``step`` that a subclass has put in place of ours, so that it is called with the hooks, and once."""
        return hooks.hooked_once(func)

    @_disable_dynamo
    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False) -> Tensor:
        """Measure the gradients of all parameters, and clip them within the next ``step()``.

        In place of ``torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)``. Until that step, which updates as
        if it had read clipped gradients, and after it, ``p.grad`` is not clipped. It serves that one step:
        ``zero_grad`` ends it, and so does a gradient that is written or replaced in between, with a warning.

        Args:
            max_norm: The largest norm that is left, in the unit of the gradients.
            norm_type: p of the p-norm, ``math.inf`` for the largest magnitude. All but 2 are measured by torch.
            error_if_nonfinite: Raise if the norm is infinite or NaN.

        Returns:
            The norm before clipping, 0-dimensional, on the device of the first gradient; as torch's, a DTensor where
            parameters are, of which each process has a copy.

        Raises:
            RuntimeError: The norm is not finite, and ``error_if_nonfinite`` is set.
            ValueError: The parameters are FSDP1's, whose processes have a part of the gradients each.
        """
        return step_clips.clip_next_step(self, max_norm, norm_type, error_if_nonfinite)

    def averaged_parameters(self) -> AbstractContextManager[None]:
        """Give the parameters the values of their averages for a block, and their own back after it.

        The averages come of ``ema_decay``. Parameters that have none keep their values. The copies of those that have
        take as much memory as these. No step may be taken within the block.

        Example:
            >>> import torch
            >>> import fusedoptim
            >>> p = torch.nn.Parameter(torch.zeros(1))
            >>> optimizer = fusedoptim.SGD([p], lr=1.0, ema_decay=0.5)
            >>> for _ in range(2):
            ...     p.grad = torch.ones(1)
            ...     optimizer.step()
            >>> with optimizer.averaged_parameters():
            ...     p.item()
            -1.5
            >>> p.item()
            -2.0
        """
        return averaged(self)

    def copy_averages_to(self, target: torch.nn.Module | Iterable[Tensor]) -> None:
        """Copy the averages into other parameters; where there is no average yet, the parameter itself.

        Args:
            target: A module, such as a copy of the model, or parameters: as many as the optimizer has, in its order and
                of the same shapes. Of a module, parameters are found by name if the optimizer was made with names.

        Raises:
            ValueError: They do not fit; nothing was copied.
        """
        copy_averages(self, target)

    def _reset_gradients(self, set_to_none: bool) -> None:
        self.__dict__.pop("_next_clip", None)
        if not _HAS_MODULE:
            super().zero_grad(set_to_none)
        elif set_to_none:
            if modes.function_mode_count() and modes.watch_operations():
                super().zero_grad(set_to_none)
            else:
                native.set_grads_to_none(self.param_groups)
        else:
            executor = self._take_executor()
            try:
                if executor.zero_grads(self.param_groups):
                    return
                if modes.watch_operations():
                    super().zero_grad(set_to_none)
                    return
                with modes.without_function_modes():
                    executor.zero_grads(self.param_groups, even_if_watched=True)
            finally:
                self.__dict__["_kept_executor"] = executor

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # GradScaler asks for it, and deepcopy and pickle drop it: they carry nothing but groups and state.
        if any(group.get("fused") for group in self.param_groups):
            self._step_supports_amp_scaling = True

    @_disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any], *, match: str = "index", strict: bool = True) -> Any:
        """Load a state that this class or torch's has saved, whole or not at all.

        ``fused``, ``foreach``, ``capturable`` and ``differentiable`` stay as this optimizer was made: which
        implementation takes the step is no part of the training state.

        Args:
            state_dict: What ``state_dict()`` has returned.
            match: ``"index"``, as in torch: the file must have the same groups and parameters, in the same order.
                ``"name"``: a parameter gets the state, and a group the options, of its names, where both this optimizer
                and the one that was saved were made with ``named_parameters()``.
            strict: With ``match="name"``: whether a name that only one side has is an error. If not, parameters that
                the file does not list start afresh, and state of names that no parameter has is left out.

        Returns:
            None, or with ``match="name"`` a named tuple of the names that only one side has: ``missing_keys``, which
            the file does not list, and ``unexpected_keys``, which no parameter has.

        Raises:
            ValueError: Something in it is damaged or belongs to other parameters. The message names it, and the
                optimizer is as it was.
        """
        return load(self, state_dict, super().load_state_dict, match, strict)


FusedStep.step.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        *list(inspect.signature(FusedStep._take_step).parameters.values())[1:],
    ]
)


@_disable_dynamo
def _outside_graph(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call ``function`` where torch.compile does not follow: it breaks the graph at the optimizer."""
    return function(*args, **kwargs)
