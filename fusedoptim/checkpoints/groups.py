"""Which group and which key of a state dict belong to each parameter of an optimizer: by index, or by name."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedoptim.checkpoints.checks import ENTRY, format_value
from fusedoptim.checkpoints.keys import StateError, some_of

# Who takes the step is no part of the training state; torch takes these from the file.
KEPT = ("fused", "foreach", "capturable", "differentiable")

_GROUPS = "state_dict['param_groups']"
_NO_OPTIONS = {"params", "param_names", *KEPT}
_UNIQUE = 'give each parameter a name of its own, as [("encoder." + name, p) for name, p in encoder.named_parameters()]'
_PREFIXES = ("module.", "_orig_mod.")  # which DistributedDataParallel and torch.compile put before a model's names


class IncompatibleKeys(NamedTuple):
    """The names that only one side has, as ``torch.nn.Module.load_state_dict`` returns them.

    Attributes:
        missing_keys: Names of parameters of the optimizer that the file does not list; they start afresh.
        unexpected_keys: Names in the file that no parameter of the optimizer has; their state is left out.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


class _Absent:
    """Stands for the key of a parameter that the file does not list."""


def check_form(state_dict: Any) -> frozenset[Hashable]:
    """Check that it has a state and groups, and return the keys that the groups list."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        has = "has" if isinstance(state_dict, Mapping) else "is"
        found = format_value(list(state_dict) if isinstance(state_dict, Mapping) else state_dict)
        what = f"{has} {found}, and not 'state' and 'param_groups'"
        raise StateError("state_dict", what, "pass the optimizer's own entry")
    state, groups = state_dict["state"], state_dict["param_groups"]
    if not isinstance(groups, (list, tuple)):
        raise StateError(_GROUPS, f"must be a list, got {format_value(groups)}", ENTRY)
    keys: set[Hashable] = set()
    for index, group in enumerate(groups):
        if not isinstance(group, dict) or not isinstance(group.get("params"), (list, tuple)):
            what = f"must be a dict with a list 'params', got {format_value(group)}"
            raise StateError(f"{_GROUPS}[{index}]", what, ENTRY)
        for position, key in enumerate(group["params"]):
            try:
                keys.add(key)
            except TypeError:
                place = f"{_GROUPS}[{index}]['params'][{position}]"
                raise StateError(place, f"is {format_value(key)}, and no index", ENTRY) from None
    if not isinstance(state, Mapping):
        raise StateError("state_dict['state']", f"must be a dict, got {format_value(state)}", ENTRY)
    return frozenset(keys)


def by_index(optimizer: Any, state_dict: Mapping[str, Any]) -> list[str]:
    """Check that groups and parameters are as many as the optimizer's, and return the groups' places in the file."""
    own, saved = optimizer.param_groups, state_dict["param_groups"]
    if len(own) != len(saved):
        raise StateError(
            _GROUPS,
            "loaded state dict has a different number of parameter groups: "
            f"{len(saved)}, and this optimizer has {len(own)}",
            "make the optimizer with the same groups" + _or_by_name(own, saved),
        )
    places = [f"{_GROUPS}[{index}]" for index in range(len(saved))]
    for place, mine, other in zip(places, own, saved, strict=True):
        if len(mine["params"]) != len(other["params"]):
            raise StateError(
                f"{place}['params']",
                "loaded state dict contains a parameter group that doesn't match the size of optimizer's group: "
                f"{len(other['params'])} parameters, and this optimizer has {len(mine['params'])}",
                "make the optimizer with the same parameters" + _or_by_name(own, saved),
            )
    return places


def _or_by_name(own: list[dict[str, Any]], saved: list[dict[str, Any]]) -> str:
    named = all("param_names" in group for group in (*own, *saved))
    return ', or match the names that both have with match="name"' if named else ""


def by_name(
    optimizer: Any, state_dict: Mapping[str, Any], strict: bool
) -> tuple[dict[str, Any], list[str], IncompatibleKeys]:
    """Make a state dict whose groups are the optimizer's, with the file's options and keys for the names of each.

    Returns:
        It, the places of its groups in the file, and the names that only one side has.
    """
    own, saved = optimizer.param_groups, state_dict["param_groups"]
    mine = _by_names(own, "optimizer.param_groups", "make it with model.named_parameters(), or load by index")
    theirs = _by_names(saved, _GROUPS, "put a list of them there, in the order of 'params', or load by index")
    left = IncompatibleKeys([x for x in mine if x not in theirs], [x for x in theirs if x not in mine])
    if strict and any(left):
        raise StateError("state_dict", *_mismatch(left))
    sources = [_sources(group, theirs) for group in own]
    groups, places = [], []
    for index, (group, source) in enumerate(zip(own, _chosen(sources, saved), strict=True)):
        names = list(group["param_names"]) if group["params"] else []
        options = group if source is None else saved[source]
        keys = [theirs[name][1] if name in theirs else _Absent() for name in names]
        groups.append({**options, "params": keys, "param_names": names})
        places.append(f"optimizer.param_groups[{index}]" if source is None else f"{_GROUPS}[{source}]")
    left_out = {theirs[name][1] for name in left.unexpected_keys} - {key for group in groups for key in group["params"]}
    state = {key: entry for key, entry in state_dict["state"].items() if key not in left_out}
    return {**state_dict, "state": state, "param_groups": groups}, places, left


def _sources(group: dict[str, Any], theirs: Mapping[str, tuple[int, Any]]) -> dict[int, str]:
    """The groups of the file that a group's parameters come from, each with the first of them."""
    sources: dict[int, str] = {}
    for name in group["param_names"] if group["params"] else ():
        if name in theirs:
            sources.setdefault(theirs[name][0], name)
    return sources


def _chosen(sources: Sequence[dict[int, str]], saved: Sequence[dict[str, Any]]) -> list[int | None]:
    """The group of the file whose options each group gets, None if nothing of it is in the file.

    Where parameters have moved to a group from one that has stayed, the group goes on as the one that has not.
    """
    stayed = {next(iter(each)) for each in sources if len(each) == 1}
    chosen: list[int | None] = []
    for index, each in enumerate(sources):
        left = {group: name for group, name in each.items() if group not in stayed} or each
        _check_alike(left, saved, f"optimizer.param_groups[{index}]")
        chosen.append(next(iter(left), None))
    return chosen


def _by_names(groups: Collection[dict[str, Any]], where: str, hint: str) -> dict[str, tuple[int, Any]]:
    """The group and the parameter, or its key, of each name."""
    found: dict[str, tuple[int, Any]] = {}
    for index, group in enumerate(groups):
        params, names = group["params"], group.get("param_names") if group["params"] else ()
        if names is None:
            raise StateError(f"{where}[{index}]", "has no 'param_names'", hint)
        if not isinstance(names, (list, tuple)) or len(names) != len(params):
            what = f"must have {len(params)} names, got {format_value(names)}"
            raise StateError(f"{where}[{index}]['param_names']", what, hint)
        for name, param in zip(names, params, strict=True):
            if not isinstance(name, str) or name in found:
                what = f"has {name!r} twice"
                if not isinstance(name, str):
                    what = f"must have strings, got {format_value(name)}"
                raise StateError(f"{where}[{index}]['param_names']", what, _UNIQUE)
            found[name] = index, param
    return found


def _mismatch(left: IncompatibleKeys) -> tuple[str, str]:
    """What is wrong, and what to do."""
    missing, unexpected = left
    what = []
    if missing:
        what.append(f"does not list {some_of(missing)}, of this optimizer")
    if unexpected:
        what.append(f"lists {some_of(unexpected)}, which this optimizer has not")
    hint = "correct 'param_names' in its groups, or load what matches with strict=False"
    for prefix in _PREFIXES:
        if {prefix + name for name in missing} & set(unexpected) or {prefix + name for name in unexpected} & set(
            missing
        ):
            hint = f"the names differ by the prefix {prefix!r}: {hint}"
    return " and ".join(what), hint


def _check_alike(sources: Mapping[int, str], saved: Sequence[dict[str, Any]], place: str) -> None:
    """Check that the groups of the file which one group's parameters come from have the same options."""
    for (first, name), (index, other) in itertools.pairwise(sorted(sources.items())):
        one, two = ({k: v for k, v in saved[i].items() if k not in _NO_OPTIONS} for i in (first, index))
        for key in [*one, *(two.keys() - one.keys())]:
            if key not in one or key not in two or not _are_same(one[key], two[key]):
                values = " and ".join(format_value(group[key]) if key in group else "absent" for group in (one, two))
                raise StateError(
                    place,
                    f"has {name!r} and {other!r}, from the groups {first} and {index} of the file, "
                    f"whose {key!r} differs: {values}",
                    f"make {key!r} the same in both before loading, and set it on this optimizer after that",
                )


def _are_same(one: Any, other: Any) -> bool:
    try:
        if isinstance(one, Tensor) or isinstance(other, Tensor):
            return torch.equal(torch.as_tensor(one), torch.as_tensor(other))
        if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
            return list(one) == list(other)
        return bool(one == other)
    except Exception:  # an object may raise anything
        return False
