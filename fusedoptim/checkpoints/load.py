"""``load_state_dict``: torch's own between checks. Where one of them fails, the optimizer is restored."""

from __future__ import annotations

import reprlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fusedoptim import reference
from fusedoptim.checkpoints.checks import ENTRY, PLAIN, check_entry, check_group, format_value, nothing_loaded
from fusedoptim.checkpoints.groups import KEPT, IncompatibleKeys, by_index, by_name, check_form
from fusedoptim.checkpoints.keys import StateError, check_strays
from fusedoptim.checkpoints.memory import check_memory, name_of
from fusedoptim.checkpoints.quick_checks import are_counts, is_usual
from fusedoptim.checkpoints.storage import restore as restore_storage
from fusedoptim.settings import DEFAULTS, EXCLUSIVE, check_storage, check_values

_COUNTS = (torch.float32, torch.float64)  # the dtypes that the kernels count in
_TAKES_SCALE = "_step_supports_amp_scaling"
_HOOKS = ("_optimizer_load_state_dict_pre_hooks", "_optimizer_load_state_dict_post_hooks")


def load(
    optimizer: Any,
    state_dict: Mapping[str, Any],
    torch_load: Callable[[Any], None],
    match: str = "index",
    strict: bool = True,
) -> IncompatibleKeys | None:
    """Load a state dict whole, or raise and leave the optimizer as it was.

    Args:
        optimizer: One of this package.
        state_dict: What ``state_dict()`` of ours or of torch's class has returned.
        torch_load: Torch's own ``load_state_dict``, bound to the optimizer.
        match: What a parameter's entry is found by, ``"index"`` or ``"name"``.
        strict: With ``"name"``, whether both sides must have the same names.

    Returns:
        With ``"name"``, the names that one side lacks.

    Raises:
        ValueError: Something in it is damaged or belongs to other parameters; the message names it.
    """
    if match not in ("index", "name"):
        raise ValueError(f'match must be "index" or "name", got {format_value(match)}')
    if match == "index" and not strict:
        raise ValueError('strict=False needs match="name": by index, every parameter of the file must have its own')
    restore = _snapshot(optimizer)
    try:
        if not isinstance(state_dict, Mapping):
            raise StateError(
                "state_dict", f"must be a dict, got {format_value(state_dict)}", "pass what state_dict() returned"
            )
        pre_hooks, post_hooks = (getattr(optimizer, name) for name in _HOOKS)
        state_dict = state_dict.copy()  # type: ignore[attr-defined]  # which is what torch gives to hooks
        for hook in pre_hooks.values():
            changed = hook(optimizer, state_dict)
            state_dict = state_dict if changed is None else changed
        listed_keys = check_form(state_dict)
        if match == "name":
            state_dict, places, left = by_name(optimizer, state_dict, strict)
        else:
            places, left = by_index(optimizer, state_dict), None
        _check(optimizer, state_dict, places, listed_keys)
        _replace(optimizer, _with_quick_look_up(state_dict), torch_load)
        check_memory(optimizer)
        for hook in post_hooks.values():
            hook(optimizer)
    except BaseException as error:
        restore()
        if isinstance(error, StateError):
            raise ValueError(nothing_loaded(error)) from None
        raise
    return left


def _snapshot(optimizer: Any) -> Callable[[], None]:
    """Return a function that restores attributes and groups. Loading replaces both, and writes into neither."""
    attributes = dict(optimizer.__dict__)
    groups = list(optimizer.param_groups)
    entries = [(group, dict(group)) for group in groups]  # which a hook may have changed

    def restore() -> None:
        optimizer.__dict__.update(attributes)
        for name in optimizer.__dict__.keys() - attributes.keys():
            del optimizer.__dict__[name]
        optimizer.param_groups[:] = groups
        for group, saved in entries:
            group.clear()
            group.update(saved)

    return restore


def _check(
    optimizer: Any, state_dict: Mapping[str, Any], places: Sequence[str], listed_keys: Collection[Hashable]
) -> None:
    """Check what torch would load unchecked."""
    rule = reference.RULES[optimizer._rule]
    state = state_dict["state"]
    owners: dict[Hashable, Tensor] = {}
    counts: list[Tensor] = []
    all_usual = True
    kept: list[tuple[dict[str, Any], tuple[str, ...]]] = []  # of each group
    for index, (own, saved) in enumerate(zip(optimizer.param_groups, state_dict["param_groups"], strict=True)):
        check_group(saved, rule, len(own["params"]), places[index])
        options = {**dict.fromkeys(rule.filled_in, 0), **{key: own[key] for key in DEFAULTS if key in own}, **saved}
        names = rule.state_names(options)
        kept.append((options, rule.own_state(options)))
        for position, (param, key) in enumerate(zip(own["params"], saved["params"], strict=True)):
            if owners.setdefault(key, param) is not param:
                name = name_of(optimizer, index, position)
                what = f"has {format_value(key)} for {name}, as for another parameter before"
                raise StateError(f"{places[index]}['params']", what, ENTRY)
            all_usual = all_usual and (key not in state or is_usual(state[key], param, names, rule.scalars, counts))
    if not (all_usual and are_counts(counts)):
        for index, (group, (options, own_names)) in enumerate(zip(state_dict["param_groups"], kept, strict=True)):
            for position, key in enumerate(group["params"]):
                if key in state:
                    where = f"state_dict['state'][{reprlib.repr(key)}]"
                    names = rule.state_names(options, owners[key])
                    find_name = partial(name_of, optimizer, index, position)
                    check_entry(state[key], owners[key], names, own_names, rule.scalars, where, find_name)
    if not state.keys() <= listed_keys:
        names_kept = {name for options, _ in kept for name in rule.state_names(options)}
        check_strays(state, listed_keys, names_kept - rule.scalars)


class _Indices(dict[Any, None]):
    """The indices of a group. For each tensor torch asks whether they contain its own."""

    def __deepcopy__(self, memo: Any) -> list[Any]:
        return list(self)


def _with_quick_look_up(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    groups = []
    for group in state_dict["param_groups"]:
        indices = _Indices.fromkeys(group["params"])
        groups.append({**group, "params": indices if len(indices) == len(group["params"]) else group["params"]})
    return {**state_dict, "param_groups": groups}


def _replace(optimizer: Optimizer, state_dict: dict[str, Any], torch_load: Callable[[Any], None]) -> None:
    """Let torch put the new state and groups in, and keep what is this optimizer's own."""
    kept = [{key: group[key] for key in KEPT if key in group} for group in optimizer.param_groups]
    settings = [{key: group[key] for key in DEFAULTS if key in group} for group in optimizer.param_groups]
    scaled = {_TAKES_SCALE: optimizer.__dict__[_TAKES_SCALE]} if _TAKES_SCALE in optimizer.__dict__ else {}
    hooks = {name: getattr(optimizer, name) for name in _HOOKS}
    optimizer.__dict__.update({name: OrderedDict() for name in _HOOKS})  # they are called by ``load``
    try:
        torch_load(state_dict)
    finally:
        optimizer.__dict__.update(hooks)
    for group, own, asked in zip(optimizer.param_groups, kept, settings, strict=True):
        if any(map(group.get, EXCLUSIVE)):  # the file has made this choice
            asked = {name: value for name, value in asked.items() if name not in EXCLUSIVE}
        group.update({**asked, **group, **own})  # a file that knows no such setting does not turn it off
    _check_settings(optimizer)
    restore_storage(optimizer, state_dict)
    optimizer.__dict__.pop(_TAKES_SCALE, None)  # which the flags of the file have set
    optimizer.__dict__.update(scaled)
    _place_numbers(optimizer)


def _check_settings(optimizer: Any) -> None:
    """Raise if the storage that the file asks for is none that the parameters can have."""
    try:
        for index, group in enumerate(optimizer.param_groups):
            check_values(group, index, ())
        check_storage(optimizer, optimizer.param_groups)
    except ValueError as error:
        hint = "take the setting out of the groups of the file, or load it into the parameters that it was saved for"
        raise StateError("state_dict['param_groups']", str(error), hint) from None


def _place_numbers(optimizer: Any) -> None:
    """Put step counts and other numbers where this optimizer makes them; torch has, as the flags of the file say."""
    seen: dict[int, tuple[Tensor, str]] = {}  # whose number lies at an address
    host = torch.device("cpu")
    rule = reference.RULES[optimizer._rule]
    for group in optimizer.param_groups:
        on_device = bool(group.get("fused") or group.get("capturable") or rule.beside_param)
        wide = torch.get_default_dtype() == torch.float64 and not on_device
        for param in group["params"]:
            entry = optimizer.state.get(param) or {}
            for name in rule.scalars & entry.keys():
                number: Any = entry[name]
                if type(number) not in PLAIN:
                    continue
                device = param.device if on_device else host
                placed = number
                if number.device != device or number.dtype not in _COUNTS or number.requires_grad:
                    moved = on_device and number.device != device
                    dtype = number.dtype if number.dtype in _COUNTS and not moved else _COUNTS[wide]
                    placed = number.to(device, dtype).detach()
                if seen.setdefault(placed.data_ptr(), (param, name))[0] is not param:
                    # FSDP saves one count for all parameters of a module; each must count by itself
                    placed = placed.clone()
                entry[name] = placed
