"""Mappings that behave like a plain dict, and mappings with behaviour of their own."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Any

_METHODS = ("__getitem__", "__setitem__", "__len__", "get")  # which torch's steps call


def is_transparent(mapping: Any) -> bool:
    """Whether a mapping is a dict that finds and takes entries as dict does, as ``csrc/python/mappings.cpp`` has it.

    Any other may make its values when they are asked for, keep them elsewhere or change them with time, so it is asked
    through its own methods.
    """
    kind = type(mapping)
    if kind in (dict, defaultdict, OrderedDict):
        return True
    return (
        isinstance(mapping, dict)
        and all(getattr(kind, name) is getattr(dict, name) for name in _METHODS)
        and getattr(kind, "__missing__", defaultdict.__missing__) is defaultdict.__missing__
    )
