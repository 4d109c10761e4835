"""Which path takes a step: the fast or the general path of the kernels, the reference, or torch."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from fusedoptim import backend, native, reference, settings
from fusedoptim.averages import averages_to_move, move_averages
from fusedoptim.clipping import step_clips
from fusedoptim.clipping.device_clips import DeviceClips
from fusedoptim.clipping.norm import clipped
from fusedoptim.storage import new_state, refuse_torch
from fusedoptim.torch_internals import modes
from fusedoptim.torch_internals.mappings import is_transparent

_TRIES = 10  # where user code replaces tensors while a step is being prepared
_REPLACED = (
    "the memory of a parameter, its gradient or its state was replaced while the step was being prepared; nothing was "
    "written to it"
)


class Update(Optimizer):
    """The update of all parameters that have a gradient. A subclass names its rule and torch's class."""

    _rule: ClassVar[str]
    _torch_class: ClassVar[type[Optimizer]]

    _torch_parts: ClassVar[tuple[tuple[str, Any], ...]]
    """The methods that torch's own ``step`` calls, by name. Where one is overridden, torch takes the step."""

    def _update(self, zero_grad: bool, set_grads_to_none: bool = False) -> bool:
        """Take the step, and return whether it has zeroed or dropped every gradient."""
        attributes = self.__dict__
        found_inf = grad_scale = check = None
        on_host = True
        if "found_inf" in attributes or "grad_scale" in attributes:  # set by GradScaler; found_inf sums over devices
            found_inf, grad_scale = attributes.get("found_inf"), attributes.get("grad_scale")
            if found_inf is not None and not native.is_on_cuda(found_inf):
                if float(found_inf) != 0:
                    attributes.pop("_next_clip", None)
                    return False
                found_inf = None
            if grad_scale is not None and not native.is_on_cuda(grad_scale):
                grad_scale = float(grad_scale)
            on_host = found_inf is None and not isinstance(grad_scale, Tensor)
            check = attributes.pop("_check_within", None)
        clips: Sequence[Any] | DeviceClips | None = None
        executor = self._take_executor()
        try:
            if "_next_clip" not in attributes:
                if (
                    check is None
                    and on_host
                    and executor.fast_step(self, zero_grad, grad_scale, set_grads_to_none, None)
                ):
                    return set_grads_to_none or zero_grad
                has_settings = settings.has_settings(self.param_groups)
                if on_host and (has_settings or check is not None) and step_clips.may_measure(self):
                    done = executor.measuring_step(self, zero_grad, grad_scale, set_grads_to_none, check is not None)
                    if done is not None:
                        return step_clips.note_measured(self, *done, check) and (set_grads_to_none or zero_grad)
                clips = None if has_settings else ()
            if check is not None and check.finds():
                attributes.pop("_next_clip", None)
                return False
            if clips is None:
                taken = step_clips.take_clips(self, grad_scale, found_inf)
                if taken is None:
                    attributes.pop("_next_clip", None)
                    return False
                clips = taken
                if isinstance(taken, DeviceClips):
                    on_host, found_inf = False, taken.found_inf
                elif any(
                    isinstance(clip, Tensor) for clip in taken
                ):  # a mode is active, for which torch takes the step
                    self._torch_step(None, clips)
                    return False
                if on_host and executor.fast_step(self, zero_grad, grad_scale, set_grads_to_none, clips):
                    return set_grads_to_none or zero_grad
            if not executor.is_ours(self) and self._why_torch() is not None:
                if isinstance(clips, DeviceClips) and found_inf is not None and float(found_inf) != 0:
                    return False
                self._torch_step(None, clips)
                return False
            if executor.torch_parts is not self._torch_parts:
                executor = self._new_executor()
            if not modes.function_mode_count():
                return self._general_step(
                    executor, zero_grad, set_grads_to_none, grad_scale, found_inf, clips, nullcontext
                )
            with modes.without_function_modes():  # no Python code runs while tensors are looked at
                if on_host and executor.fast_step(self, zero_grad, grad_scale, set_grads_to_none, clips):
                    return set_grads_to_none or zero_grad
                outside = modes.with_function_modes
                return self._general_step(executor, zero_grad, set_grads_to_none, grad_scale, found_inf, clips, outside)
        finally:
            attributes["_kept_executor"] = executor
            if clips:
                attributes.pop("_next_clip", None)

    def _general_step(
        self,
        executor: backend.StepExecutor,
        zero_grad: bool,
        set_grads_to_none: bool,
        grad_scale: float | Tensor | None,
        found_inf: Tensor | None,
        clips: Sequence[float] | DeviceClips,
        for_torch: Callable[[], Any],
    ) -> bool:
        """Take the general path: prepare, let torch step what is left to it (in the context given), then apply."""
        stepped: list[list[list[Tensor]]] = []  # by torch so far: after a retry, more may be left to it
        try:
            for _ in range(_TRIES):
                write_grads = zero_grad or grad_scale is not None
                if isinstance(clips, DeviceClips):
                    prepare: Any = executor.prepare_limited  # type: ignore[attr-defined]  # the reference measures on the host
                    left = prepare(self.param_groups, self.state, self._new_state, write_grads, **clips.for_executor())
                else:
                    left = executor.prepare(self.param_groups, self.state, self._new_state, write_grads, clips)
                if found_inf is not None and (left is not None or executor.is_skipped_by_host()):
                    if float(found_inf) != 0:
                        return False
                    found_inf = None
                rest = _without(left, stepped) if left is not None and stepped else left
                if rest is not None:
                    with for_torch():
                        self._torch_step(rest, clips)
                    stepped.append(rest)
                if executor.apply(
                    self.state, zero_grad, grad_scale, found_inf, self.param_groups if set_grads_to_none else None
                ):
                    return set_grads_to_none or (zero_grad and left is None)
                if clips:  # a gradient may have been replaced
                    scalers = clips.scalers if isinstance(clips, DeviceClips) else found_inf
                    again = step_clips.take_clips(self, grad_scale, scalers)
                    if again is None:
                        return False
                    clips, found_inf = again, again.found_inf if isinstance(again, DeviceClips) else scalers
            raise RuntimeError(_REPLACED)
        finally:
            executor.clear()

    def _take_executor(self) -> backend.StepExecutor:
        """The executor of the last step, or a new one. It is removed from the optimizer, so no two threads share it."""
        executor: backend.StepExecutor | None = self.__dict__.pop("_kept_executor", None)
        return self._new_executor() if executor is None or executor.backend != backend.in_use else executor

    def _new_executor(self) -> backend.StepExecutor:
        demanded = any(group["fused"] for group in self.param_groups if "fused" in group)
        return backend.new_executor(self._rule, demanded, self._torch_parts)

    def _why_torch(self) -> str | None:
        """Why torch's own implementation takes the whole step, or None."""
        wrapped = False
        for name, part in self._torch_parts:
            found = getattr(type(self), name)
            if name in self.__dict__ or (found is not part and _innermost(found) is not _innermost(part)):
                return f"{name} is overridden, which torch's step calls"
            wrapped = wrapped or found is not part
        if wrapped:  # by torch.compile
            owner = next(cls for cls in type(self).__mro__ if "_torch_parts" in vars(cls))
            owner._torch_parts = tuple((name, getattr(type(self), name)) for name, _ in self._torch_parts)  # type: ignore[attr-defined]
        if not is_transparent(self.state):
            return f"the optimizer's state is a {type(self.state).__name__}, with methods of its own"
        return "a mode of torch is active, which watches operations" if modes.watch_operations() else None

    def _new_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """The state of a parameter that has none, as torch makes it."""
        return new_state(reference.RULES[self._rule], param, group)

    def _torch_step(self, params: list[list[Tensor]] | None, clips: Sequence[Any] | DeviceClips = ()) -> None:
        """Let torch's own implementation step the given parameters of each group, or all."""
        refuse_torch(self.param_groups, params)
        step: Any = self._torch_class.step
        if getattr(step, "hooked", False):  # torch wraps it to call the hooks, which our own step has called
            step = step.__wrapped__
        lists = [group["params"] for group in self.param_groups] if params is None else params
        clips = clips.coefficients() if isinstance(clips, DeviceClips) else clips
        moves = averages_to_move(self, lists)
        with clipped(lists, clips, self.__dict__.get("grad_scale")) if clips else nullcontext():
            if params is None:
                step(self)
            else:
                self._step_some(step, params)
        move_averages(self, moves)

    def _step_some(self, step: Callable[[Any], Any], params: list[list[Tensor]]) -> None:
        # The groups are not changed even for a moment: an interrupt would leave them so.
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.param_groups = [
            _group_of(group, some) for group, some in zip(self.param_groups, params, strict=True) if some
        ]
        step(other)
        other.param_groups = self.param_groups
        self.__dict__.update(other.__dict__)


def _innermost(function: Any) -> Any:
    """The function inside wrappers of torch.compile."""
    while (inner := getattr(function, "_torchdynamo_orig_callable", None)) is not None:
        function = inner
    return function


def _without(left: list[list[Tensor]], stepped: list[list[list[Tensor]]]) -> list[list[Tensor]] | None:
    """The parameters of each group that are not among those, or None if all are."""
    done = {id(param) for lists in stepped for params in lists for param in params}
    rest = [[param for param in params if id(param) not in done] for params in left]
    return rest if any(rest) else None


def _group_of(group: Any, params: list[Tensor]) -> Any:
    """A group with other parameters; options are still read from the group itself."""
    return {**group, "params": params} if is_transparent(group) else ChainMap({"params": params}, group)
