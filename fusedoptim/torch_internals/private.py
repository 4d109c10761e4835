"""Access to private names of torch. Where a release lacks one, its feature is lost and the import still works."""

from __future__ import annotations

import importlib
import inspect
from typing import Any


def private(path: str, otherwise: Any) -> Any:
    """A private object of torch, or a substitute.

    Args:
        path: Its full name, such as ``torch._C._len_torch_dispatch_stack``.
        otherwise: The substitute where this torch has no such name.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return otherwise


def has_method(cls: type[Any], name: str, parameters: list[str]) -> bool:
    """Whether a class of torch has a private method, with just these parameters, that can be overridden."""
    method = getattr(cls, name, None)
    return method is not None and [*inspect.signature(method).parameters] == parameters
