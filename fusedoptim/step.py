"""The part that all optimizers of this package share: ``step`` and ``zero_grad``, and when torch takes over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from fusedoptim import native, reference
from fusedoptim.backend import Plan, get_backend, new_plan
from fusedoptim.state_dict import load

_ZERO_GRAD = (None, "to_zero", "to_none")

# The profiler label that torch's own C++ code uses: a twentieth of the cost of torch.profiler.record_function.
_label = torch._C._profiler._RecordFunctionFast


class FusedStep(Optimizer):
    """Takes torch's optimizer of the same name as its second base and replaces ``step`` and ``zero_grad``.

    A subclass names its rule and torch's class. Everything else (constructor, checks, defaults, hooks, the format of
    the state) is torch's own.
    """

    _rule: ClassVar[str]
    _kept_plan: Plan
    _torch_class: ClassVar[type[Optimizer]]

    def step(  # type: ignore[override]
        self, closure: Callable[[], Any] | None = None, *, zero_grad: str | None = None
    ) -> Any:
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
            ValueError: ``zero_grad`` is none of these.
            RuntimeError: A group has ``fused=True`` and a parameter that the kernels cannot take; the message names
                both the parameter and the reason. Or elements of a parameter share memory, or those of a gradient
                that is to be zeroed or unscaled.
            KeyError: The state of a parameter is incomplete.
        """
        if torch.compiler.is_dynamo_compiling():
            return _outside_graph(FusedStep.step, self, closure, zero_grad=zero_grad)
        overridden = type(self).step is not FusedStep.step  # then torch's wrapper of that step has called the hooks
        hooks = (
            _global_optimizer_pre_hooks
            or self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_post_hooks
        )
        if hooks and not overridden:
            given = {} if zero_grad is None else {"zero_grad": zero_grad}
            return _step_with_hooks(self, *(() if closure is None else (closure,)), **given)
        with _label(self._step_label):
            loss = self._take_step(closure, zero_grad)
            self._optimizer_step_code()  # where torch's profiler looks at the optimizer
        return loss

    step.hooked = True  # type: ignore[attr-defined]  # torch need not wrap it: it calls the hooks itself

    def _take_step(self, closure: Callable[[], Any] | None = None, zero_grad: str | None = None) -> Any:
        if zero_grad not in _ZERO_GRAD:
            raise ValueError(f'zero_grad must be None, "to_zero" or "to_none", got {zero_grad!r}')
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        all_reset = self._update(zero_grad == "to_zero", zero_grad == "to_none")
        if zero_grad is not None and not all_reset:
            self._reset_gradients(set_to_none=zero_grad == "to_none")
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters, in one call.

        Args:
            set_to_none: Drop the gradients; otherwise write zeros over them.
        """
        if torch.compiler.is_dynamo_compiling():
            _outside_graph(FusedStep.zero_grad, self, set_to_none)
            return
        with _label(self._zero_grad_profile_name):
            self._reset_gradients(set_to_none)

    def _patch_step_function(self) -> None:
        super()._patch_step_function()
        self._step_label = f"Optimizer.step#{type(self).__name__}.step"

    def _reset_gradients(self, set_to_none: bool) -> None:
        if not native.available():
            super().zero_grad(set_to_none)
        elif set_to_none:
            native.drop_grads(self.param_groups)
        else:
            plan = self._take_plan()
            try:
                plan.zero_grads(self.param_groups)
            finally:
                self._kept_plan = plan

    def _update(self, zero_grad: bool, drop_grads: bool = False) -> bool:
        """Take the step, and return whether it has zeroed or dropped every gradient."""
        found_inf = getattr(self, "found_inf", None)  # set by GradScaler, with grad_scale: a sum over devices
        grad_scale = getattr(self, "grad_scale", None)
        if found_inf is not None and not native.is_on_cuda(found_inf):
            if float(found_inf) != 0:
                return False
            found_inf = None
        if grad_scale is not None and not native.is_on_cuda(grad_scale):
            grad_scale = float(grad_scale)
        plan = self._take_plan()
        try:
            if (
                found_inf is None
                and not isinstance(grad_scale, Tensor)
                and plan.step_directly(self.param_groups, self.state, zero_grad, grad_scale, drop_grads)
            ):
                return drop_grads or zero_grad
            return self._update_in_two_halves(plan, zero_grad, drop_grads, grad_scale, found_inf)
        finally:
            self._kept_plan = plan

    def _update_in_two_halves(
        self, plan: Plan, zero_grad: bool, drop_grads: bool, grad_scale: float | Tensor | None, found_inf: Tensor | None
    ) -> bool:
        try:
            foreign = plan.gather(self.param_groups, self.state, self._new_state, zero_grad or grad_scale is not None)
            if found_inf is not None and (foreign is not None or plan.is_skipped_by_host()):
                if float(found_inf) != 0:
                    return False
                found_inf = None
            if foreign is not None:
                self._torch_step(foreign)
            plan.commit(self.state, zero_grad, grad_scale, found_inf, self.param_groups if drop_grads else None)
        finally:
            plan.clear()
        return drop_grads or (zero_grad and foreign is None)

    def _take_plan(self) -> Plan:
        """The plan kept from the last step, or a new one. Taken out, so that no two threads can share it."""
        plan: Plan | None = self.__dict__.pop("_kept_plan", None)
        if plan is None or plan.backend != get_backend():
            plan = new_plan(self._rule, any(group.get("fused") for group in self.param_groups))
        return plan

    def _new_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """The state of a parameter that has none, as torch makes it."""
        on_device = group.get("fused") or group.get("capturable")
        wide = torch.get_default_dtype() == torch.float64 and not group.get("fused")
        return {
            name: torch.zeros(
                (),
                dtype=torch.float64 if wide else torch.float32,
                device=param.device if on_device else "cpu",
            )
            if name == "step"
            else torch.zeros_like(param, requires_grad=False, memory_format=torch.preserve_format)
            for name in reference.RULES[self._rule].state_names(group)
        }

    def _torch_step(self, params: list[list[Tensor]]) -> None:
        """Let torch's own implementation take the step for the given parameters of each group."""
        step: Any = self._torch_class.step
        if getattr(step, "hooked", False):  # torch wraps it to call the hooks, which our own step has called
            step = step.__wrapped__
        groups = [{**group, "params": subset} for group, subset in zip(self.param_groups, params, strict=True)]
        other = object.__new__(type(self))  # no group is changed, even for a moment: an interrupt would leave it so
        other.__dict__ = {**self.__dict__, "param_groups": groups}
        step(other)
        self.__dict__.update({**other.__dict__, "param_groups": self.param_groups})

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


def _take_step(optimizer: FusedStep, *args: Any, **kwargs: Any) -> Any:
    return optimizer._take_step(*args, **kwargs)


_step_with_hooks = Optimizer.profile_hook_step(_take_step)


@_disable_dynamo
def _outside_graph(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call ``function`` where torch.compile does not follow: it breaks the graph at the optimizer."""
    return function(*args, **kwargs)
