"""What this package uses of torch's private parts. One that a torch lacks costs its feature, and not the import."""

from __future__ import annotations

import importlib
from typing import Any


def private(path: str, otherwise: Any) -> Any:
    """A private object of torch, or what does without it.

    Args:
        path: Its full name, such as ``torch._C._len_torch_dispatch_stack``.
        otherwise: What is used where this torch has none of that name.
    """
    names = path.split(".")
    found: Any = importlib.import_module(names[0])
    try:
        for at, name in enumerate(names[1:], 2):
            if not hasattr(found, name):
                importlib.import_module(".".join(names[:at]))
            found = getattr(found, name)
    except (ImportError, AttributeError):
        return otherwise
    return found
