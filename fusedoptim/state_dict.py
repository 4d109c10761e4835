"""``load_state_dict``: through torch's own, with checks before and after, and undone whole where anything is wrong."""

from __future__ import annotations

import reprlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fusedoptim import reference
from fusedoptim.state_checks import ENTRY, PLAIN, StateError, check_entry, check_group, nothing_loaded, shown
from fusedoptim.state_memory import check_memory, name_of

# Who takes the step is no part of the training state; torch takes these from the file.
_KEPT = ("fused", "foreach", "capturable", "differentiable")
_TAKES_SCALE = "_step_supports_amp_scaling"
_HOOKS = ("_optimizer_load_state_dict_pre_hooks", "_optimizer_load_state_dict_post_hooks")


def load(optimizer: Any, state_dict: Mapping[str, Any], torch_load: Callable[[Any], None]) -> None:
    """Load a state dict whole, or raise and leave the optimizer as it was.

    Args:
        optimizer: One of this package.
        state_dict: What ``state_dict()`` of ours or of torch's class has returned.
        torch_load: Torch's own ``load_state_dict``, bound to the optimizer.

    Raises:
        ValueError: Something in it is damaged or belongs to other parameters; the message names it.
    """
    undo = _undo(optimizer)
    try:
        if not isinstance(state_dict, Mapping):
            raise StateError(
                "state_dict", f"must be a dict, got {shown(state_dict)}", "pass what state_dict() returned"
            )
        pre_hooks, post_hooks = (getattr(optimizer, name) for name in _HOOKS)
        state_dict = state_dict.copy()  # type: ignore[attr-defined]  # which is what torch gives to hooks
        for hook in pre_hooks.values():
            changed = hook(optimizer, state_dict)
            state_dict = state_dict if changed is None else changed
        _check(optimizer, state_dict)
        _replace(optimizer, _with_quick_look_up(state_dict), torch_load)
        check_memory(optimizer)
        for hook in post_hooks.values():
            hook(optimizer)
    except BaseException as error:
        undo()
        if isinstance(error, StateError):
            raise ValueError(nothing_loaded(error)) from None
        raise


def _undo(optimizer: Any) -> Callable[[], None]:
    """Remember the attributes and the groups; loading replaces state and groups and writes into neither."""
    attributes = dict(optimizer.__dict__)
    groups = list(optimizer.param_groups)
    entries = [(group, dict(group)) for group in groups]  # which a hook may have changed

    def undo() -> None:
        optimizer.__dict__.update(attributes)
        for name in optimizer.__dict__.keys() - attributes.keys():
            del optimizer.__dict__[name]
        optimizer.param_groups[:] = groups
        for group, saved in entries:
            group.clear()
            group.update(saved)

    return undo


def _check(optimizer: Any, state_dict: Any) -> None:
    """Look at what torch would load without a look."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        has = f"has {shown(list(state_dict))}" if isinstance(state_dict, Mapping) else f"is {shown(state_dict)}"
        raise StateError("state_dict", f"{has}, and not 'state' and 'param_groups'", "pass the optimizer's own entry")
    rule = reference.RULES[optimizer._rule]
    owners: dict[Hashable, tuple[Tensor, tuple[str, ...], Callable[[], str]]] = {}
    for index, (own, saved) in enumerate(_pairs(optimizer, state_dict["param_groups"])):
        where = f"state_dict['param_groups'][{index}]"
        check_group(saved, rule, len(own["params"]), where)
        names = rule.state_names({"amsgrad": False, "momentum": 0, **saved})
        for position, (param, key) in enumerate(zip(own["params"], saved["params"], strict=True)):
            place = f"{where}['params'][{position}]"
            if not isinstance(key, Hashable):
                raise StateError(place, f"is {shown(key)}, and no index", ENTRY)
            if key in owners and owners[key][0] is not param:
                raise StateError(place, f"is {shown(key)}, as for another parameter before", ENTRY)
            owners[key] = (param, names, partial(name_of, optimizer, index, position))
    if not isinstance(state_dict["state"], Mapping):
        raise StateError("state_dict['state']", f"must be a dict, got {shown(state_dict['state'])}", ENTRY)
    for key, entry in state_dict["state"].items():
        where = f"state_dict['state'][{reprlib.repr(key)}]"
        if key in owners:
            check_entry(entry, *owners[key][:2], where, owners[key][2])
        elif isinstance(key, int):  # others are a user's own, which torch keeps
            raise StateError(where, "belongs to no parameter that the groups of the file list", ENTRY)


def _pairs(optimizer: Any, saved: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The optimizer's groups beside those of the file."""
    where = "state_dict['param_groups']"
    if not isinstance(saved, (list, tuple)):
        raise StateError(where, f"must be a list, got {shown(saved)}", ENTRY)
    own = optimizer.param_groups
    if len(own) != len(saved):
        raise StateError(
            where,
            "loaded state dict has a different number of parameter groups: "
            f"{len(saved)}, and this optimizer has {len(own)}",
            "make the optimizer with the same groups",
        )
    for index, (mine, other) in enumerate(zip(own, saved, strict=True)):
        if not isinstance(other, dict) or not isinstance(other.get("params"), (list, tuple)):
            raise StateError(f"{where}[{index}]", f"must be a dict with a list 'params', got {shown(other)}", ENTRY)
        if len(mine["params"]) != len(other["params"]):
            raise StateError(
                f"{where}[{index}]['params']",
                "loaded state dict contains a parameter group that doesn't match the size of optimizer's group: "
                f"{len(other['params'])} parameters, and this optimizer has {len(mine['params'])}",
                "make the optimizer with the same parameters",
            )
    return list(zip(own, saved, strict=True))


class _Indices(list[Any]):
    """The indices of a group. For each tensor torch asks whether they contain its own."""

    def __init__(self, indices: Any) -> None:
        super().__init__(indices)
        self._set = frozenset(indices)

    def __contains__(self, index: object) -> bool:
        return index in self._set

    def __deepcopy__(self, memo: Any) -> list[Any]:
        return list(self)


def _with_quick_look_up(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    groups = [{**group, "params": _Indices(group["params"])} for group in state_dict["param_groups"]]
    return {**state_dict, "param_groups": groups}


def _replace(optimizer: Optimizer, state_dict: dict[str, Any], torch_load: Callable[[Any], None]) -> None:
    """Let torch put the new state and groups in, and keep what is this optimizer's own."""
    kept = [{key: group[key] for key in _KEPT if key in group} for group in optimizer.param_groups]
    scaled = {_TAKES_SCALE: optimizer.__dict__[_TAKES_SCALE]} if _TAKES_SCALE in optimizer.__dict__ else {}
    hooks = {name: getattr(optimizer, name) for name in _HOOKS}
    optimizer.__dict__.update({name: OrderedDict() for name in _HOOKS})  # they are called by ``load``
    try:
        torch_load(state_dict)
    finally:
        optimizer.__dict__.update(hooks)
    for group, own in zip(optimizer.param_groups, kept, strict=True):
        group.update(own)
    optimizer.__dict__.pop(_TAKES_SCALE, None)  # which the flags of the file have set
    optimizer.__dict__.update(scaled)
    _place_steps(optimizer)


def _place_steps(optimizer: Optimizer) -> None:
    """Put the step counts where this optimizer makes them; torch has placed them as the flags of the file say."""
    seen: dict[int, Tensor] = {}  # whose count it is
    for group in optimizer.param_groups:
        on_device = bool(group.get("fused") or group.get("capturable"))
        wide = torch.get_default_dtype() == torch.float64 and not on_device
        for param in group["params"]:
            step = optimizer.state[param].get("step") if param in optimizer.state else None
            if not isinstance(step, Tensor) or type(step) not in PLAIN:
                continue
            device = param.device if on_device else torch.device("cpu")
            dtype = step.dtype if step.dtype in (torch.float32, torch.float64) else None
            if dtype is None or (on_device and step.device != device):
                dtype = torch.float64 if wide else torch.float32
            placed = step.to(device, dtype)
            placed = placed.detach() if placed.requires_grad else placed
            if seen.setdefault(id(placed), param) is not param:
                # FSDP saves one count for all parameters of a module; each must count by itself
                placed = placed.clone()
            optimizer.state[param]["step"] = placed
