"""What this package uses of torch's private parts. One that a torch lacks costs its feature, and not the import."""

from __future__ import annotations

import importlib
import inspect
from typing import Any


def private(path: str, otherwise: Any) -> Any:
    """A private object of torch, or what does without it.

    Args:
        path: Its full name, such as ``torch._C._len_torch_dispatch_stack``.
        otherwise: What is used where this torch has none of that name.
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
