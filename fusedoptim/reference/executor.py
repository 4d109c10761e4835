"""Applies the reference rules to an optimizer's parameters, as ``csrc/python`` applies the kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fusedoptim import reference
from fusedoptim.reference import storage
from fusedoptim.reference.ieee import OutOfRangeError
from fusedoptim.reference.parameters import (
    DTYPES,
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
from fusedoptim.reference.storage import Storage
from fusedoptim.reference.transaction import Transaction
from fusedoptim.settings import STORAGE, check_values
from fusedoptim.torch_internals import modes
from fusedoptim.torch_internals.dtensor import first_element, is_dtensor, local_of, refusal_of_sharding
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
    late: list[str]  # entries that it has not had yet, beside others
    existing: dict[str, Any]  # the state before
    options: dict[str, Any]
    maximize: bool
    average: Tensor | None  # of a DTensor where the parameter is one; None if there is none
    decay: float
    storage: Storage
    companion: str | None  # its name in the state
    clip: float = 1.0


class ReferenceExecutor:
    """One step on the reference path: ``prepare`` reads and checks, ``apply`` writes."""

    backend = "reference"

    def __init__(self, rule: str, torch_parts: tuple[tuple[str, Any], ...] = ()) -> None:
        self.torch_parts = torch_parts
        self._rule = reference.RULES[rule]
        self._prepared: list[_Prepared] = []
        self._new_states: dict[Tensor, dict[str, Any]] = {}  # by parameter, one of which may be listed twice
        self._group_numbers: list[tuple[dict[str, Any], dict[str, float]]] = []  # what the step writes to groups

    def fast_step(self, *_: Any) -> bool:
        """Never: the reference has the general path only."""
        return False

    def measuring_step(self, *_: Any) -> None:
        """Never, as well."""

    def is_ours(self, optimizer: Any) -> bool:
        """False: ``Update._why_torch`` decides."""
        return False

    def prepare(
        self,
        groups: list[dict[str, Any]],
        state: dict[Tensor, dict[str, Any]],
        new_state: Callable[[Tensor, dict[str, Any]], dict[str, Any]],
        write_grads: bool,
        clips: Sequence[float] = (),
        first_number: int = 0,
    ) -> list[list[Tensor]] | None:
        """Read and check all parameters that have a gradient.

        Args:
            groups: The optimizer's parameter groups.
            state: The optimizer's state.
            new_state: Makes the state of a parameter that has none.
            write_grads: The step will also write to the gradients, which must be possible.
            clips: What the gradients of each group are multiplied by; none for 1.
            first_number: Of the first parameter, as random bits know it.

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
            if self._rule.advance_group is not None:
                numbers = self._rule.advance_group(options or as_numbers(self._rule, group, index))
                self._group_numbers.append((group, numbers))
            position = -1
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
                    number = first_number + position
                    reason = self._add(param, group, options, state.get(param, {}), new_state, name, number)
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
            first_number += position + 1
        return for_torch if any(for_torch) else None

    def _read(self, group: dict[str, Any], index: int) -> tuple[Any, dict[str, Any] | None]:
        """The parameters of a group and its options as numbers, or None for these if torch is asked for."""
        check_values(group, index, (*STORAGE, "seed"))
        try:
            return group["params"], None if is_torchs(group) else as_numbers(self._rule, group, index)
        except KeyError as error:
            key = error.args[0] if error.args else "key"
            hint = f"set optimizer.param_groups[{index}][{key!r}]"
            raise KeyError(f"parameter group {index} has no {key!r}; {hint}") from None

    def _add(
        self, param: Tensor, group: Any, options: Any, existing: dict[str, Any], new_state: Any, name: str, number: int
    ) -> str | None:
        """Note a parameter for ``apply``, or return why its state cannot be taken."""
        decay = average_decay(group)
        asked = {**group, **options, "ema_decay": decay}
        own_names, names = self._rule.own_state(options), self._rule.state_names(asked, local_of(param))
        if names and isinstance(existing, Mapping) and not is_transparent(existing):
            return _STATE_OF_ITS_OWN
        if names and not isinstance(existing, dict):
            raise TypeError(f"the state must be a dict in {name}")
        is_new = bool(own_names) and all(existing.get(key) is None for key in own_names)
        late = [key for key in names if storage.is_late(key, own_names) and existing.get(key) is None]
        if (is_new or late) and param not in self._new_states:
            self._new_states[param] = new_state(param, group)
        state = (
            {**self._new_states[param], **{k: v for k, v in existing.items() if v is not None}}
            if is_new
            else dict(existing)
        )
        state.update({key: self._new_states[param][key] for key in late})
        for key in names:
            if state.get(key) is None:
                raise KeyError(f"the state has no '{key}' in {name}")
            if reason := self._refusal_of_state(param, key, state, name):
                return reason
        step = float(state["step"]) + 1 if "step" in names else float(options.get("k", 0)) + 1
        numbers = {key: state[key] for key in own_names if key in self._rule.numbers}
        try:  # on one element, since the numbers that the arithmetic cannot hold are the same for all
            zero = torch.zeros((), dtype=param.dtype)
            self._rule.update(zero, zero, {**dict.fromkeys(own_names, zero), **numbers}, step, **options)
        except OutOfRangeError as error:
            raise OutOfRangeError(f"{error}, in {name} with {options}") from None
        grad = param.grad
        assert grad is not None
        stored = self._rule.storage_of(asked, local_of(param), state, number)
        if stored.stochastic or stored.signs:
            first = first_element(param)
            if first is None:
                return "random bits are numbered in the whole tensor, of which this process has more than some rows"
            stored = replace(stored, first_element=first)
        companion = None if stored.companion is None else storage.COMPANION_NAMES[stored.companion]
        if (reason := _refusal_of_dtypes(param, grad, state, stored)) is not None:
            return reason
        maximize = bool(group.get("maximize"))
        average = state["ema"] if decay is not None else None
        self._prepared.append(
            _Prepared(
                param, grad, state, is_new, late, existing, options, maximize, average, decay or 0.0, stored, companion
            )
        )
        return None

    def _refusal_of_state(self, param: Tensor, key: str, state: dict[str, Any], name: str) -> str | None:
        value = state[key]
        if key not in self._rule.scalars:
            if value.shape != param.shape:
                raise RuntimeError(f"{key} has shape {tuple(value.shape)}, which does not fit in {name}")
            if reason := refusal_of_sharding(param, "state", value):
                return reason
        if type(local_of(value)) not in PLAIN:
            return "its state is a tensor subclass"
        if shares_elements(local_of(value)):
            return "elements of its state may share memory"
        if key == "step" and float(value) <= -1:
            hint = "set it right in the state of this parameter"
            raise RuntimeError(f"step must be at least 0, got {float(value)}: {hint}, in {name}")
        if value.dtype == torch.uint8:
            scale = state.get(f"{key}_scale")
            if scale is None:
                raise KeyError(f"a state in 8 bits has no scale in {name}")
            if not isinstance(scale, Tensor):
                return "its state is not a tensor"
            if local_of(scale).shape != storage.scale_shape(local_of(param).shape) or scale.dtype != torch.float32:
                return "a scale of its state is not float32 in the order of rows, one for each block"
        return None

    def explain(
        self, groups: list[dict[str, Any]], state: dict[Tensor, dict[str, Any]], new_state: Any
    ) -> list[tuple[int, int, str, str]]:
        """See ``backend.StepExecutor.explain``."""
        found = []
        for index, group in enumerate(groups):
            for position, param in enumerate(group["params"]):
                if param.grad is None:
                    continue
                who, why = "reference", ""
                one = {**group, "params": [param], "fused": None if group.get("fused") else group.get("fused")}
                try:
                    if self.prepare([one], state, new_state, False) is not None:
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

    def apply(
        self,
        state: dict[Tensor, dict[str, Any]],
        zero_grad: bool,
        grad_scale: Any = None,
        found_inf: None = None,
        set_to_none_in: Iterable[dict[str, Any]] | None = None,
    ) -> bool:
        """Take the step that was prepared, whole, or not at all if a signal handler raises.

        Args:
            state: The optimizer's state; new entries are put into it.
            zero_grad: Also write zeros over the gradients.
            grad_scale: Divide the gradients by it first, and leave them divided.
            found_inf: None: the host has decided.
            set_to_none_in: Groups whose gradients are dropped in the end, or None.
        """
        if not self._is_as_seen(state):
            return False
        grad_scale = None if grad_scale is None else float(grad_scale)
        dropped = [param for group in set_to_none_in or () for param in group["params"]]
        for entry in self._prepared if zero_grad else ():
            _detach_grad(entry.grad)
        # The kernels write to inference tensors as well. Torch's own inference_mode is Python code: stopped there by
        # the handler of a signal, it would leave the mode on.
        with _inference_mode(True):
            transaction = Transaction()
            drops: list[Callable[[], Any]] = [partial(group.update, new) for group, new in self._group_numbers]
            drops += [partial(setattr, param, "grad", None) for param in dropped]
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
        """Whether gradients and state are still those that were prepared: reading options may have run user code.

        A tensor of the state that was replaced by one like it, as another thread may do all the time, is taken instead.
        """
        for entry in self._prepared:
            own = state.get(entry.param, {})
            if own is not entry.existing and not (entry.is_new or not entry.existing):
                return False
            made = [key for key, value in entry.state.items() if entry.existing.get(key) is None]
            if any(own.get(key) is not None for key in made) or entry.param.grad is not entry.grad:
                return False
            for key, value in entry.state.items():
                now = own.get(key)
                if key in made or now is value:
                    continue
                if not _is_alike(now, value):
                    return False
                entry.state[key] = now
            if "step" in entry.state and float(entry.state["step"]) <= -1:
                return False
        return True

    def _install_state(self, state: dict[Tensor, dict[str, Any]], transaction: Transaction) -> None:
        """Put new state into the optimizer's. Where another step has put some there meanwhile, that is used."""
        for entry in self._prepared:
            made = {key: value for key, value in entry.state.items() if entry.existing.get(key) is None}
            if not made:
                continue
            if entry.param not in state:
                transaction.add(partial(state.pop, entry.param, None))
            own = state.setdefault(entry.param, dict(made))  # whole at once: another thread may be looking
            missing = {key: value for key, value in made.items() if own.get(key) is None}
            for key in missing:
                transaction.add(partial(own.__setitem__, key, None) if key in own else partial(own.pop, key, None))
            own.update(missing)
            entry.is_new = entry.is_new and all(own[key] is made[key] for key in made if key not in entry.late)
            entry.late = [key for key in entry.late if own[key] is made[key]]
            entry.state = own

    def _written(self, grads_are_written: bool) -> list[Tensor]:
        tensors: list[Tensor] = []
        for entry in self._prepared:
            names = [*self._rule.own_state(entry.options), *entry.storage.operands, *entry.late]
            names += [f"{name}_scale" for name in entry.storage.signs]
            names += [name for name in ("step", "ema", entry.companion) if name in entry.state]
            tensors += [entry.param, *(entry.state[name] for name in dict.fromkeys(names))]
            tensors += [entry.grad] if grads_are_written else []
        return [local_of(tensor) for tensor in tensors]

    def _write(self, zero_grad: bool, grad_scale: float | None) -> None:
        for entry in self._prepared:
            own_param, own_grad = local_of(entry.param), local_of(entry.grad)
            own_state = {name: local_of(value) for name, value in entry.state.items()}
            if grad_scale is not None:
                own_grad.copy_(reference.prepare_grad(own_grad, grad_scale=grad_scale))
            stored, names = entry.storage, self._rule.own_state(entry.options)
            companion = own_state.get(entry.companion or "") if entry.companion else None
            scales = {name: own_state.get(f"{name}_scale") for name in stored.operands}
            param = stored.read_param(own_param, companion)
            grad = reference.prepare_grad(own_grad, maximize=entry.maximize, clip=entry.clip)
            old = {name: stored.read_state(name, own_state[name], scales[name]) for name in stored.operands}
            if entry.is_new and "step" not in names and not self._rule.initial:
                old = {}  # a new momentum buffer is not read
            numbers = {name: own_state[name] for name in names if name in self._rule.numbers}
            step = float(entry.options.get("k", 0)) + 1
            if "step" in own_state and ("step" in names or "" in stored.stochastic):
                entry.state["step"] += 1
                step = float(entry.state["step"])
            new_param, new_state = self._rule.update(param, grad, {**old, **numbers}, step, **entry.options)
            stored.write_param(new_param, own_param, companion, step)
            for name, number in numbers.items():
                number.copy_(new_state.pop(name))
            for name, value in new_state.items():
                stored.write_state(name, value, own_state[name], scales[name], step)
            if entry.average is not None:
                average = own_state["ema"]
                is_new = "ema" in entry.late or (entry.is_new and entry.existing.get("ema") is None)
                average.copy_(reference.average(None if is_new else average, own_param, entry.decay))
            if is_dtensor(entry.param):  # its own version counter is what autograd looks at
                increment_version([entry.param] if grad_scale is None else [entry.param, entry.grad])
        if zero_grad:
            for entry in self._prepared:
                entry.grad.zero_()

    def clear(self) -> None:
        """Forget what was prepared."""
        self._prepared.clear()
        self._new_states.clear()
        self._group_numbers.clear()


def _is_alike(tensor: Any, other: Any) -> bool:
    return (
        type(tensor) is type(other)
        and type(tensor) in PLAIN
        and (tensor.shape, tensor.dtype, tensor.device) == (other.shape, other.dtype, other.device)
        and not shares_elements(tensor)
    )


def _refusal_of_dtypes(param: Tensor, grad: Tensor, state: dict[str, Any], stored: Storage) -> str | None:
    """Why tensors of these dtypes are not stepped together, or None."""
    if grad.dtype not in DTYPES:
        return "its gradient has a dtype of integers"
    names = [name for name in (*stored.operands, "ema") if name in state]
    for name in names:
        if state[name].dtype not in DTYPES and (state[name].dtype != torch.uint8 or name == "ema"):
            return "its state has a dtype that is not supported"
    wide = param.dtype == torch.float64
    if (grad.dtype == torch.float64) != wide:
        return "its gradient has another dtype, and float64 is not mixed with others"
    if any((state[name].dtype == torch.float64) != wide for name in names):
        return "its state has another dtype, and float64 is not mixed with others"
    if stored.companion is not None:
        wanted = {"master": torch.float32, "remainder": torch.int16}.get(stored.companion, param.dtype)
        if state[storage.COMPANION_NAMES[stored.companion]].dtype != wanted:
            return "its master_param or kahan_comp has another dtype than its group asks for"
        if stored.companion == "remainder" and param.dtype != torch.bfloat16:
            return "only bfloat16 parameters have remainders"
    return None


def _detach_grad(grad: Tensor) -> None:
    with _inference_mode(False):  # detach_ cuts nothing off in inference mode
        grad.detach_() if grad.grad_fn is not None else grad.requires_grad_(False)
