"""Objects with a behaviour of their own in the places of state, groups and lists of parameters, by name."""

from __future__ import annotations

import collections
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

Change = Callable[[Any, list[Parameter]], Any]


class Plain(dict):  # type: ignore[type-arg]
    """Overrides nothing."""


class Makes(dict):  # type: ignore[type-arg]
    """A defaultdict by another name."""

    def __missing__(self, key: Any) -> Any:
        self[key] = {}
        return self[key]


class Forgetful(dict):  # type: ignore[type-arg]
    """Hands out copies, as of what is kept on another device or in another format."""

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        if isinstance(value, Tensor):
            return value.clone()
        return {k: v.clone() for k, v in value.items()} if isinstance(value, dict) else value


class ForgetfulByGet(dict):  # type: ignore[type-arg]
    def get(self, key: Any, default: Any = None) -> Any:
        value = super().get(key, default)
        return value * 2 if isinstance(value, Tensor) else value


class SaysEmpty(dict):  # type: ignore[type-arg]
    """Torch makes new state where it finds none."""

    def __len__(self) -> int:
        return 0


class Changes(dict):  # type: ignore[type-arg]
    """Keeps something else than what is put in."""

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value + 1 if isinstance(value, Tensor) else value)


class FromFile(dict):  # type: ignore[type-arg]
    """State that is there as soon as somebody asks."""

    def __missing__(self, key: Any) -> Any:
        if isinstance(key, Tensor):
            self[key] = {
                "step": torch.tensor(7.0),
                **{name: torch.full_like(key, 0.25) for name in ("exp_avg", "exp_avg_sq", "momentum_buffer")},
            }
            return self[key]
        raise KeyError(key)


class Generous(dict):  # type: ignore[type-arg]
    """Has an entry for whatever is asked of it, and keeps none; ``get`` and ``len`` say so too."""

    shape = (4, 33)

    def __missing__(self, key: str) -> Tensor:
        return torch.tensor(3.0) if key == "step" else torch.full(self.shape, 0.25)

    def __len__(self) -> int:
        return 1

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key]


class Scheduled(dict):  # type: ignore[type-arg]
    """A group whose learning rate is computed."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key) * 0.5 if key == "lr" else super().__getitem__(key)


class Inherits(dict):  # type: ignore[type-arg]
    """A group with only what differs."""

    rest: dict[str, Any]

    def __missing__(self, key: str) -> Any:
        return self.rest[key]

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key] if key in self or key in self.rest else default


class PartlyFrozen(dict):  # type: ignore[type-arg]
    """A group whose parameters are chosen when they are asked for."""

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        return [p for p in value if p.dim() < 2] if key == "params" else value


class ByIteration(list):  # type: ignore[type-arg]
    """What it holds is what it iterates over, and not what lies in the list: each second."""

    def __iter__(self) -> Iterator[Any]:
        return iter(list.__getitem__(self, slice(None, None, 2)))


class NotByIndex(list):  # type: ignore[type-arg]
    """What torch does not ask for has no effect."""

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("torch iterates")

    def __len__(self) -> int:
        return 1


class Scheduling(list):  # type: ignore[type-arg]
    """Groups that are made anew whenever they are asked for."""

    def __iter__(self) -> Iterator[Any]:
        return iter([{**group, "lr": group["lr"] * 0.5} for group in super().__iter__()])


def without_lr(group: dict[str, Any], other: Any) -> Any:
    del group["lr"]
    other.update(group)
    return other


def inheriting(group: dict[str, Any]) -> Inherits:
    result = Inherits(params=group["params"], lr=0.3)
    result.rest = group
    return result


def group(make: Callable[[dict[str, Any]], Any]) -> Change:
    return lambda o, ps: o.param_groups.__setitem__(0, make(o.param_groups[0]))


def groups(make: Callable[[Any], Any]) -> Change:
    return lambda o, ps: setattr(o, "param_groups", make(o.param_groups))


def params(make: Callable[[Any], Any]) -> Change:
    return lambda o, ps: o.param_groups[0].update(params=make(ps))


def state(make: Callable[[Any], Any]) -> Change:
    return lambda o, ps: setattr(o, "state", make(o.state))


def own(make: Callable[[dict[str, Any]], Any]) -> Change:
    return lambda o, ps: o.state.__setitem__(ps[0], make(o.state[ps[0]]))


CHANGES: dict[str, Change] = {
    "group Plain": group(Plain),
    "group UserDict": group(collections.UserDict),
    "group OrderedDict": group(collections.OrderedDict),
    "group ChainMap": group(lambda g: collections.ChainMap({"lr": 0.3}, g)),
    "group defaultdict": group(lambda g: without_lr(g, collections.defaultdict(lambda: 0.3))),
    "group read-only": group(types.MappingProxyType),
    "group Scheduled": group(Scheduled),
    "group Inherits": group(inheriting),
    "group PartlyFrozen": group(PartlyFrozen),
    "group without lr": group(lambda g: without_lr(g, Plain())),
    "groups tuple": groups(tuple),
    "groups ByIteration": groups(ByIteration),
    "groups NotByIndex": groups(NotByIndex),
    "groups Scheduling": groups(Scheduling),
    "groups UserList": groups(collections.UserList),
    "groups of a dict": groups(lambda gs: dict(enumerate(gs)).values()),
    "groups dict": groups(lambda gs: dict(enumerate(gs))),
    "params tuple": params(tuple),
    "params ByIteration": params(ByIteration),
    "params NotByIndex": params(NotByIndex),
    "params UserList": params(collections.UserList),
    "params set": params(set),
    "params keys": params(dict.fromkeys),
    "params ParameterList": params(torch.nn.ParameterList),
    "params of one use": params(iter),
    "params None": params(lambda _: None),
    "state Plain": state(Plain),
    "state Makes": state(Makes),
    "state Makes, anew": state(lambda s: Makes()),
    "state dict": state(dict),
    "state UserDict": state(collections.UserDict),
    "state OrderedDict": state(collections.OrderedDict),
    "state ChainMap": state(lambda s: collections.ChainMap(collections.defaultdict(dict, s))),
    "state Forgetful": state(Forgetful),
    "state ForgetfulByGet": state(ForgetfulByGet),
    "state FromFile": state(FromFile),
    "state FromFile, anew": state(lambda s: FromFile()),
    "state of OrderedDicts, anew": state(lambda s: collections.defaultdict(collections.OrderedDict)),
    "state of UserDicts, anew": state(lambda s: collections.defaultdict(collections.UserDict)),
    "own Plain": own(Plain),
    "own UserDict": own(collections.UserDict),
    "own OrderedDict": own(collections.OrderedDict),
    "own ChainMap": own(lambda s: collections.ChainMap({}, s)),
    "own defaultdict": own(lambda s: collections.defaultdict(lambda: torch.ones(4, 33), s)),
    "own read-only": own(types.MappingProxyType),
    "own Forgetful": own(Forgetful),
    "own ForgetfulByGet": own(ForgetfulByGet),
    "own Changes": own(Changes),
    "own SaysEmpty": own(SaysEmpty),
    "own Generous": own(lambda s: Generous()),
    "own None": own(lambda s: None),
    "own list": own(lambda s: [s]),
}  # fmt: skip
