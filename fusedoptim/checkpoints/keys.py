"""Which keys of a state belong to parameters. A parameter whose entry is not found would silently start anew."""

from __future__ import annotations

import numbers
import reprlib
from collections.abc import Collection, Hashable, Iterable, Mapping
from itertools import islice
from typing import Any

from torch import Tensor

_MOST = 5


class StateError(Exception):
    """What is wrong in a state dict: where, what, and what to do. Users see it as a ValueError."""


def some_of(keys: Collection[Any]) -> str:
    """Some of the keys, and how many there are."""
    text = ", ".join(map(reprlib.repr, islice(keys, _MOST)))
    return text if len(keys) <= _MOST else f"{text} and {len(keys) - _MOST} more ({len(keys)} in all)"


def meant_keys(state: Mapping[Any, Any], listed_keys: Collection[Hashable]) -> dict[Any, Any]:
    """Keys that read like one that the groups list, is of another type and has no entry; and the latter."""
    by_text = {_text(key): key for key in listed_keys if key not in state}
    strays = {key: _text(key) for key in state if key not in listed_keys}
    return {key: by_text[text] for key, text in strays.items() if text is not None and text in by_text}


def not_meant(meant: Mapping[Any, Any]) -> tuple[str, str]:
    """What is wrong where there are such keys, and what to do."""
    kind = _kinds(meant.values())
    what = (
        f"has the keys {some_of(meant)} ({_kinds(meant)}) where the groups list {some_of(meant.values())} ({kind}), "
        "as after a trip through JSON, and these parameters would start afresh"
    )
    if kind in ("int", "str"):
        return what, f"make each of these keys {kind}(key) in state_dict['state']"
    return what, "give both the same keys"


def check_strays(state: Mapping[Any, Any], listed_keys: Collection[Hashable], kept: Collection[str]) -> None:
    """Check the keys of a state that no group lists: some are a user's own, which torch keeps.

    Args:
        state: That of the file.
        listed_keys: Those that the groups of the file list.
        kept: The names of the tensors of its shape that the rule keeps for a parameter.

    Raises:
        StateError: A parameter would start afresh though the file has its state, or an entry has no parameter.
    """
    strays = [key for key in state if key not in listed_keys]
    if meant := meant_keys(state, listed_keys):
        raise StateError("state_dict['state']", *not_meant(meant))
    if unlisted := [key for key in strays if isinstance(key, (numbers.Integral, Tensor))]:
        raise StateError(
            "state_dict['state']",
            f"has entries that belong to no parameter, as no group of the file lists them: {some_of(unlisted)}",
            "remove these entries, or take the param_groups that were saved with them",
        )
    if not any(state.get(key) for key in listed_keys):
        _check_not_meant(state, strays, kept)


def _check_not_meant(state: Mapping[Any, Any], strays: Iterable[Any], kept: Collection[str]) -> None:
    """Where no parameter has an entry, look for what can only be parameters' under keys of another form."""
    lost = [key for key in strays if _speaks_of(key, state[key], tuple(kept))]
    if lost:
        raise StateError(
            "state_dict['state']",
            f"has entries {some_of(lost)}, and none for the keys that the groups list: "
            "all parameters would start afresh",
            "give each parameter's entry, a dict, the key that its group lists in 'params'",
        )


def _speaks_of(key: Any, value: Any, names: tuple[str, ...]) -> bool:
    if isinstance(value, Mapping):
        return any(name in value for name in names)
    return isinstance(value, Tensor) and isinstance(key, str) and key.endswith(names)


def _text(key: Any) -> str | None:
    """What a key reads like, None if it cannot stand for another one."""
    try:
        if isinstance(key, bytes):
            return key.decode()
        if isinstance(key, Tensor):
            return str(key.item()) if key.numel() == 1 else None
        return str(key) if isinstance(key, (str, numbers.Integral)) else None
    except Exception:  # a key may raise anything
        return None


def _kinds(keys: Iterable[Any]) -> str:
    return ", ".join(sorted({type(key).__name__ for key in keys}))
