"""What of torch.optim is not replaced here: torch's own modules and names, under this package's name.

``fusedoptim.lr_scheduler`` is the module ``torch.optim.lr_scheduler`` itself, found when somebody imports it; so is
every module of torch.optim that has no namesake here. One that has (``fusedoptim.adam``) shows torch's names behind its
own. No name of torch is listed, so those of later releases are here as well.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

_PACKAGE, _TORCHS = __name__.rpartition(".")[0], "torch.optim"


def names_of_torch(module: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module that shows a module of torch behind its own names.

    Args:
        module: The name of the module that shows it, such as ``fusedoptim.adam``.
    """
    theirs = _TORCHS + module.removeprefix(_PACKAGE)

    def __getattr__(name: str) -> Any:  # noqa: N807
        try:
            return getattr(importlib.import_module(theirs), name)
        except AttributeError:
            raise AttributeError(f"module {module!r} has no attribute {name!r}", name=name) from None

    return __getattr__


@functools.cache
def _own_modules() -> frozenset[str]:
    return frozenset(module.name for module in pkgutil.iter_modules(sys.modules[_PACKAGE].__path__))


class _TorchModule(importlib.abc.InspectLoader):
    """Loads a module of torch under another name: the very object, with its own ``__name__`` and ``__spec__``."""

    def __init__(self, theirs: ModuleSpec) -> None:
        self._theirs = theirs

    def exec_module(self, module: ModuleType) -> None:
        """Put torch's module in the place of the empty one that Python has made."""
        sys.modules[module.__name__] = importlib.import_module(self._theirs.name)

    def get_code(self, fullname: str) -> CodeType | None:
        """For ``python -m``."""
        loader: Any = self._theirs.loader
        code: CodeType | None = loader.get_code(self._theirs.name)
        return code

    def get_source(self, fullname: str) -> str | None:
        """For tools that read the source of what they have not imported."""
        loader: Any = self._theirs.loader
        source: str | None = loader.get_source(self._theirs.name)
        return source


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != _PACKAGE or name.partition(".")[0] in _own_modules():
            return None
        theirs = importlib.util.find_spec(f"{_TORCHS}.{name}")
        if theirs is None:
            return None
        spec = ModuleSpec(fullname, _TorchModule(theirs), origin=theirs.origin)
        spec.submodule_search_locations = theirs.submodule_search_locations
        return spec


_finder = _Finder()


def find_modules_of_torch() -> None:
    """Let Python find ``fusedoptim.x`` in torch.optim, where this package has no module ``x``.

    Before the usual way of finding modules, which would load a second copy of what lies in a package of torch's.
    """
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
