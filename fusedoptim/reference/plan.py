"""Applies the reference rules to an optimizer's parameters, as ``csrc/python`` applies the kernels."""

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
from fusedoptim.reference.transaction import Transaction
from fusedoptim.torch_internals import modes
from fusedoptim.torch_internals.dtensor import is_dtensor, local_of, refusal_of_sharding
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
class _Prepared:
    param: Tensor
    grad: Tensor
    state: dict[str, Any]  # of DTensors where the parameter is one
    is_new: bool  # the state
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
        self._prepared: list[_Prepared] = []
        self._new_states: dict[Tensor, dict[str, Any]] = {}  # by parameter, one of which may be listed twice

    def fast_step(self, *_: Any) -> bool:
        """Never: the reference has the general path only."""
        return False

    def measuring_step(self, *_: Any) -> None:
        """Never, as well."""

    def is_ours(self, optimizer: Any) -> bool:
        """False: ``Update._why_torch`` decides."""
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
        for_torch: list[list[Tensor]] = []
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
                        self._prepared[-1].clip = clips[index]
                if reason is None:
                    continue
                if options is not None and group.get("fused") and reason not in _FOR_TORCH_ALONE:
                    hint = "with fused=None torch's own implementation takes it"
                    if reason == SPARSE_GRAD:
                        hint = "use SparseAdam, or SGD without fused=True"
                    raise RuntimeError(
                        "`fused=True` requires all the params to be floating point Tensors of supported devices: "
                        f"['cpu'] but {name} cannot be taken by the fused kernels: {reason}; {hint}"
                    )
                left.append(param)
            for_torch.append(left)
        return for_torch if any(for_torch) else None

    def _read(self, group: dict[str, Any], index: int) -> tuple[Any, dict[str, Any] | None]:
        """The parameters of a group and its options as numbers, or None for these if torch is asked for."""
        try:
            return group["params"], None if is_torchs(group) else as_numbers(self._rule.options(group), index)
        except KeyError as error:
            key = error.args[0] if error.args else "key"
            hint = f"set optimizer.param_groups[{index}][{key!r}]"
            raise KeyError(f"parameter group {index} has no {key!r}; {hint}") from None

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
        is_new = all(existing.get(key) is None for key in own_names)
        average_is_new = decay is not None and existing.get("ema") is None
        if (is_new or average_is_new) and param not in self._new_states:
            self._new_states[param] = new_state(param, group)
        state = dict(self._new_states[param] if is_new else existing)
        average = None
        if decay is not None:
            average = state["ema"] = self._new_states[param]["ema"] if average_is_new else existing["ema"]
        for key in names:
            if state.get(key) is None:
                raise KeyError(f"the state has no '{key}' in {name}")
            if key != "step" and state[key].shape != param.shape:
                raise RuntimeError(f"{key} has shape {tuple(state[key].shape)}, which does not fit in {name}")
            if key != "step" and (reason := refusal_of_sharding(param, "state", state[key])):
                return reason
            if type(local_of(state[key])) not in PLAIN or (key != "step" and state[key].dtype != param.dtype):
                return "its state has another dtype, or is a tensor subclass"
            if shares_elements(local_of(state[key])):
                return "elements of its state may share memory"
            if key == "step" and float(state[key]) <= -1:
                hint = "set it right in the state of this parameter"
                raise RuntimeError(f"step must be at least 0, got {float(state[key])}: {hint}, in {name}")
        step = float(state["step"]) + 1 if "step" in names else 1.0
        try:  # on one element, since the numbers that the arithmetic cannot hold are the same for all
            zero = torch.zeros((), dtype=param.dtype)
            self._rule.update(zero, zero, {key: zero for key in own_names if key != "step"}, step, **options)
        except OutOfRangeError as error:
            raise OutOfRangeError(f"{error}, in {name} with {options}") from None
        grad = param.grad
        assert grad is not None
        state = self._new_states[param] if is_new else existing
        maximize = bool(group.get("maximize"))
        self._prepared.append(
            _Prepared(param, grad, state, is_new, options, maximize, average, average_is_new, decay or 0.0)
        )
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
                    _detach_grad(param.grad)
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
        """Take the step that was gathered, whole, or not at all if a signal handler raises.

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
        for entry in self._prepared if zero_grad else ():
            _detach_grad(entry.grad)
        # The kernels write to inference tensors as well. Torch's own inference_mode is Python code: stopped there by
        # the handler of a signal, it would leave the mode on.
        with _inference_mode(True):
            transaction = Transaction()
            drops = [partial(setattr, param, "grad", None) for param in dropped]
            try:
                self._install_state(state, transaction)
                transaction.copy(self._written(zero_grad or grad_scale is not None))
                self._write(zero_grad, grad_scale)
                transaction.finish(drops)
            except BaseException:
                transaction.roll_back()
                raise
        self.clear()
        return True

    def _is_as_seen(self, state: dict[Tensor, dict[str, Any]]) -> bool:
        """Whether gradients and state are still those that were gathered: reading options may have run user code."""
        for entry in self._prepared:
            own = state.get(entry.param, {})
            others = [own.get(key) for key in entry.state if key != "ema"]
            taken = any(x is not None for x in others) if entry.is_new else own is not entry.state
            if taken or entry.param.grad is not entry.grad:
                return False
            if "step" in entry.state and float(entry.state["step"]) <= -1:
                return False
            if entry.average is not None and own.get("ema") is not (None if entry.average_is_new else entry.average):
                return False
        return True

    def _install_state(self, state: dict[Tensor, dict[str, Any]], transaction: Transaction) -> None:
        """Put new state into the optimizer's. Where another step has put some there meanwhile, that is used."""
        for entry in self._prepared:
            if entry.average_is_new and not entry.is_new:
                transaction.add(partial(entry.state.pop, "ema", None))
                entry.state["ema"] = entry.average
            if not entry.is_new or not entry.state:
                continue
            if entry.param not in state:
                transaction.add(partial(state.pop, entry.param, None))
            own = state.setdefault(entry.param, dict(entry.state))  # whole at once: another thread may be looking
            missing = {key: value for key, value in entry.state.items() if own.get(key) is None}
            for key in missing:
                transaction.add(partial(own.__setitem__, key, None) if key in own else partial(own.pop, key, None))
            own.update(missing)
            entry.is_new = all(own[key] is value for key, value in entry.state.items() if key != "ema")
            entry.state = own

    def _written(self, grads_are_written: bool) -> list[Tensor]:
        tensors: list[Tensor] = []
        for entry in self._prepared:
            tensors += [entry.param, *(entry.state[name] for name in self._rule.own_state(entry.options))]
            tensors += [entry.grad] if grads_are_written else []
            tensors += [entry.average] if entry.average is not None else []
        return [local_of(tensor) for tensor in tensors]

    def _write(self, zero_grad: bool, grad_scale: float | None) -> None:
        for entry in self._prepared:
            own_param, own_grad = local_of(entry.param), local_of(entry.grad)
            own_state = {name: local_of(value) for name, value in entry.state.items()}
            if grad_scale is not None:
                own_grad.copy_(reference.prepare_grad(own_grad, grad_scale=grad_scale))
            grad = reference.prepare_grad(own_grad, maximize=entry.maximize, clip=entry.clip)
            old = {} if entry.is_new and "step" not in entry.state else own_state  # a new momentum buffer is not read
            step = 1.0
            if "step" in entry.state:
                entry.state["step"] += 1
                step = float(entry.state["step"])
            new_param, new_state = self._rule.update(own_param, grad, old, step, **entry.options)
            own_param.copy_(new_param)
            for name, value in new_state.items():
                own_state[name].copy_(value)
            if entry.average is not None:
                average = local_of(entry.average)
                average.copy_(reference.average(None if entry.average_is_new else average, own_param, entry.decay))
            if is_dtensor(entry.param):  # its own version counter is what autograd looks at
                increment_version([entry.param] if grad_scale is None else [entry.param, entry.grad])
        if zero_grad:
            for entry in self._prepared:
                entry.grad.zero_()

    def clear(self) -> None:
        """Forget what was gathered."""
        self._prepared.clear()
        self._new_states.clear()


def _detach_grad(grad: Tensor) -> None:
    with _inference_mode(False):  # detach_ cuts nothing off in inference mode
        grad.detach_() if grad.grad_fn is not None else grad.requires_grad_(False)
