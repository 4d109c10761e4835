"""Drives the reference rules over an optimizer's parameters, as ``csrc/python`` drives the kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fusedoptim import reference
from fusedoptim.reference.ieee import OutOfRangeError
from fusedoptim.reference.parameters import (
    PLAIN,
    SPARSE_GRAD,
    as_numbers,
    average_decay,
    is_expanded,
    is_torchs,
    name_of,
    refusal,
    shares_elements,
)
from fusedoptim.reference.transaction import Undo
from fusedoptim.torch_internals import modes
from fusedoptim.torch_internals.dtensor import is_dtensor, local_of, refusal_of_cut
from fusedoptim.torch_internals.mappings import is_transparent
from fusedoptim.torch_internals.private import private

_SHARED = (
    "unsupported operation: more than one element of the written-to tensor refers to a single memory location. "
    "Please clone() the tensor before performing the operation: "
)
# What these stand for only their own methods know, which torch's implementations call: with fused=True as well.
_STATE_OF_ITS_OWN = "its state is a mapping with methods of its own"
_FOR_TORCH_ALONE = (
    _STATE_OF_ITS_OWN,
    "it or its gradient is a tensor subclass",
    "its gradient is a tensor subclass",
)
_inference_mode: Callable[[bool], Any] = private("torch._C._InferenceMode", torch.inference_mode)


@dataclass
class _Row:
    param: Tensor
    grad: Tensor
    state: dict[str, Any]  # of DTensors where the parameter is one
    fresh: bool
    options: dict[str, Any]
    maximize: bool
    average: Tensor | None  # of a DTensor where the parameter is one; None if there is none
    average_is_new: bool
    decay: float
    clip: float = 1.0


class ReferencePlan:
    """One step on the reference path: ``gather`` reads and checks, ``commit`` writes."""

    backend = "reference"

    def __init__(self, rule: str, torch_parts: tuple[tuple[str, Any], ...] = ()) -> None:
        self.torch_parts = torch_parts
        self._rule = reference.RULES[rule]
        self._rows: list[_Row] = []
        self._fresh: dict[Tensor, dict[str, Any]] = {}  # by parameter, one of which may be listed twice

    def fast_step(self, *_: Any) -> bool:
        """Never: the reference always takes the step in its two halves."""
        return False

    def measuring_step(self, *_: Any) -> None:
        """Never, as well."""

    def is_ours(self, optimizer: Any) -> bool:
        """False: it is found out in Python."""
        return False

    def gather(
        self,
        groups: list[dict[str, Any]],
        state: dict[Tensor, dict[str, Any]],
        new_state: Callable[[Tensor, dict[str, Any]], dict[str, Any]],
        write_grads: bool,
        clips: Sequence[float] = (),
    ) -> list[list[Tensor]] | None:
        """Read and check all parameters that have a gradient.

        Args:
            groups: The optimizer's parameter groups.
            state: The optimizer's state.
            new_state: Makes the state of a parameter that has none.
            write_grads: The step will also write to the gradients, which must be possible.
            clips: What the gradients of each group are multiplied by; none for 1.

        Returns:
            None, or for each group the parameters that torch's own implementation must take.

        Raises:
            RuntimeError: A group with ``fused=True`` holds such a parameter, or memory is shared between elements.
        """
        self.clear()
        foreign: list[list[Tensor]] = []
        for index, group in enumerate(groups):
            left: list[Tensor] = []
            params, options = self._read(group, index)
            for position, param in enumerate(params):
                if param.grad is None:
                    continue
                name = name_of(param, group, index, position)
                reason = refusal(param) if options is not None else "torch's own implementation was asked for"
                if reason is None and options is not None:
                    if is_expanded(local_of(param)):
                        raise RuntimeError(f"{_SHARED} in {name}")
                    if write_grads and shares_elements(local_of(param.grad)):
                        what = 'a gradient to be zeroed (zero_grad="to_none" can drop it) or unscaled'
                        raise RuntimeError(f"{_SHARED} {what} in {name}")
                    reason = self._add(param, group, options, state.get(param, {}), new_state, name)
                    if reason is None and clips:
                        self._rows[-1].clip = clips[index]
                if reason is None:
                    continue
                if options is not None and group.get("fused") and reason not in _FOR_TORCH_ALONE:
                    cure = "with fused=None torch's own implementation takes it"
                    if reason == SPARSE_GRAD:
                        cure = "use SparseAdam, or SGD without fused=True"
                    raise RuntimeError(
                        "`fused=True` requires all the params to be floating point Tensors of supported devices: "
                        f"['cpu'] but {name} cannot be taken by the fused kernels: {reason}; {cure}"
                    )
                left.append(param)
            foreign.append(left)
        return foreign if any(foreign) else None

    def _read(self, group: dict[str, Any], index: int) -> tuple[Any, dict[str, Any] | None]:
        """The parameters of a group and its options as numbers, or None for these if torch is asked for."""
        try:
            return group["params"], None if is_torchs(group) else as_numbers(self._rule.options(group), index)
        except KeyError as error:
            key = error.args[0] if error.args else "key"
            cure = f"set optimizer.param_groups[{index}][{key!r}]"
            raise KeyError(f"parameter group {index} has no {key!r}; {cure}") from None

    def _add(
        self, param: Tensor, group: Any, options: Any, existing: dict[str, Any], new_state: Any, name: str
    ) -> str | None:
        """Note a parameter for ``commit``, or return why its state cannot be taken."""
        decay = average_decay(group)
        own_names, names = self._rule.own_state(options), self._rule.state_names({**options, "ema_decay": decay})
        if names and isinstance(existing, Mapping) and not is_transparent(existing):
            return _STATE_OF_ITS_OWN
        if names and not isinstance(existing, dict):
            raise TypeError(f"the state must be a dict in {name}")
        fresh = all(existing.get(key) is None for key in own_names)
        average_is_new = decay is not None and existing.get("ema") is None
        if (fresh or average_is_new) and param not in self._fresh:
            self._fresh[param] = new_state(param, group)
        state = dict(self._fresh[param] if fresh else existing)
        average = None
        if decay is not None:
            average = state["ema"] = self._fresh[param]["ema"] if average_is_new else existing["ema"]
        for key in names:
            if state.get(key) is None:
                raise KeyError(f"the state has no '{key}' in {name}")
            if key != "step" and state[key].shape != param.shape:
                raise RuntimeError(f"{key} has shape {tuple(state[key].shape)}, which does not fit in {name}")
            if key != "step" and (reason := refusal_of_cut(param, "state", state[key])):
                return reason
            if type(local_of(state[key])) not in PLAIN or (key != "step" and state[key].dtype != param.dtype):
                return "its state has another dtype, or is a tensor subclass"
            if shares_elements(local_of(state[key])):
                return "elements of its state may share memory"
            if key == "step" and float(state[key]) <= -1:
                cure = "set it right in the state of this parameter"
                raise RuntimeError(f"step must be at least 0, got {float(state[key])}: {cure}, in {name}")
        step = float(state["step"]) + 1 if "step" in names else 1.0
        try:  # on one element, since the numbers that the arithmetic cannot hold are the same for all
            zero = torch.zeros((), dtype=param.dtype)
            self._rule.update(zero, zero, {key: zero for key in own_names if key != "step"}, step, **options)
        except OutOfRangeError as error:
            raise OutOfRangeError(f"{error}, in {name} with {options}") from None
        grad = param.grad
        assert grad is not None
        state = self._fresh[param] if fresh else existing
        maximize = bool(group.get("maximize"))
        self._rows.append(_Row(param, grad, state, fresh, options, maximize, average, average_is_new, decay or 0.0))
        return None

    def explain(
        self, groups: list[dict[str, Any]], state: dict[Tensor, dict[str, Any]], new_state: Any
    ) -> list[tuple[int, int, str, str]]:
        """See ``backend.Plan.explain``."""
        found = []
        for index, group in enumerate(groups):
            for position, param in enumerate(group["params"]):
                if param.grad is None:
                    continue
                who, why = "reference", ""
                one = {**group, "params": [param], "fused": None if group.get("fused") else group.get("fused")}
                try:
                    if self.gather([one], state, new_state, False) is not None:
                        who, why = "torch", refusal(param) or "its state is not a plain tensor or dict"
                        if is_torchs(group):
                            why = "its group asks for torch's own implementation"
                        elif group.get("fused") and why not in _FOR_TORCH_ALONE:
                            who, why = "nobody", f"fused=True, but {why}"
                except (RuntimeError, TypeError, KeyError, ValueError) as error:
                    # Without its place, which is another among all groups.
                    who, why = (
                        "nobody",
                        str(error.args[0] if error.args else error).replace(f" in {name_of(param, one, 0, 0)}", ""),
                    )
                finally:
                    self.clear()
                found.append((index, position, who, why))
        return found

    def is_skipped_by_host(self) -> bool:
        """Always: nothing here is read on a device."""
        return True

    def zero_grads(self, groups: list[dict[str, Any]], even_if_watched: bool = False) -> bool:
        """Write zeros over all gradients; or return False, where a mode of torch is active, unless told to go on."""
        if not even_if_watched and modes.watch_operations():
            return False
        for group in groups:
            for param in group["params"]:
                if param.grad is not None:
                    _cut_off(param.grad)
                    with torch.inference_mode():
                        param.grad.zero_()
        return True

    def commit(
        self,
        state: dict[Tensor, dict[str, Any]],
        zero_grad: bool,
        grad_scale: Any = None,
        found_inf: None = None,
        drop_grads_of: Iterable[dict[str, Any]] | None = None,
    ) -> bool:
        """Take the step that was gathered; the whole of it, or, if the handler of a signal raises, nothing.

        Args:
            state: The optimizer's state; new entries are put into it.
            zero_grad: Also write zeros over the gradients.
            grad_scale: Divide the gradients by it first, and leave them divided.
            found_inf: None: the host has decided.
            drop_grads_of: Groups whose gradients are dropped in the end, or None.
        """
        if not self._is_as_seen(state):
            return False
        grad_scale = None if grad_scale is None else float(grad_scale)
        dropped = [param for group in drop_grads_of or () for param in group["params"]]
        for row in self._rows if zero_grad else ():
            _cut_off(row.grad)
        # The kernels write to inference tensors as well. Torch's own inference_mode is Python code: stopped there by
        # the handler of a signal, it would leave the mode on.
        with _inference_mode(True):
            undo = Undo()
            drops = [partial(setattr, param, "grad", None) for param in dropped]
            try:
                self._adopt(state, undo)
                undo.copy(self._written(zero_grad or grad_scale is not None))
                self._write(zero_grad, grad_scale)
                undo.finish(drops)
            except BaseException:
                undo.roll_back()
                raise
        self.clear()
        return True

    def _is_as_seen(self, state: dict[Tensor, dict[str, Any]]) -> bool:
        """Whether gradients and state are those that were gathered: options and new state may have run code since."""
        for row in self._rows:
            own = state.get(row.param, {})
            others = [own.get(key) for key in row.state if key != "ema"]
            taken = any(x is not None for x in others) if row.fresh else own is not row.state
            if taken or row.param.grad is not row.grad:
                return False
            if "step" in row.state and float(row.state["step"]) <= -1:
                return False
            if row.average is not None and own.get("ema") is not (None if row.average_is_new else row.average):
                return False
        return True

    def _adopt(self, state: dict[Tensor, dict[str, Any]], undo: Undo) -> None:
        """Put new state where the optimizer keeps it; where another step has been there first, go on with its."""
        for row in self._rows:
            if row.average_is_new and not row.fresh:
                undo.add(partial(row.state.pop, "ema", None))
                row.state["ema"] = row.average
            if not row.fresh or not row.state:
                continue
            if row.param not in state:
                undo.add(partial(state.pop, row.param, None))
            own = state.setdefault(row.param, dict(row.state))  # whole at once: another thread may be looking
            missing = {key: value for key, value in row.state.items() if own.get(key) is None}
            for key in missing:
                undo.add(partial(own.__setitem__, key, None) if key in own else partial(own.pop, key, None))
            own.update(missing)
            row.fresh = all(own[key] is value for key, value in row.state.items() if key != "ema")
            row.state = own

    def _written(self, grads_are_written: bool) -> list[Tensor]:
        tensors: list[Tensor] = []
        for row in self._rows:
            tensors += [row.param, *(row.state[name] for name in self._rule.own_state(row.options))]
            tensors += [row.grad] if grads_are_written else []
            tensors += [row.average] if row.average is not None else []
        return [local_of(tensor) for tensor in tensors]

    def _write(self, zero_grad: bool, grad_scale: float | None) -> None:
        for row in self._rows:
            own_param, own_grad = local_of(row.param), local_of(row.grad)
            own_state = {name: local_of(value) for name, value in row.state.items()}
            if grad_scale is not None:
                own_grad.copy_(reference.prepare_grad(own_grad, grad_scale=grad_scale))
            grad = reference.prepare_grad(own_grad, maximize=row.maximize, clip=row.clip)
            old = {} if row.fresh and "step" not in row.state else own_state  # a new momentum buffer is not read
            step = 1.0
            if "step" in row.state:
                row.state["step"] += 1
                step = float(row.state["step"])
            new_param, new_state = self._rule.update(own_param, grad, old, step, **row.options)
            own_param.copy_(new_param)
            for name, value in new_state.items():
                own_state[name].copy_(value)
            if row.average is not None:
                average = local_of(row.average)
                average.copy_(reference.average(None if row.average_is_new else average, own_param, row.decay))
            if is_dtensor(row.param):  # its own version counter is what autograd looks at
                increment_version([row.param] if grad_scale is None else [row.param, row.grad])
        if zero_grad:
            for row in self._rows:
                row.grad.zero_()

    def clear(self) -> None:
        """Forget what was gathered."""
        self._rows.clear()
        self._fresh.clear()


def _cut_off(grad: Tensor) -> None:
    with _inference_mode(False):  # detach_ cuts nothing off in inference mode
        grad.detach_() if grad.grad_fn is not None else grad.requires_grad_(False)
