"""Ways to spoil a case of ``boundary.py``. Each takes the case, changes something in it, and says what."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor


class Number:
    """Looks like a number. Reading it changes what the step has in its hands, and may raise."""

    def __init__(self, case: Any) -> None:
        self.case = case

    def _meddle(self) -> None:
        draw, case = self.case.draw, self.case
        meddle(case)
        if draw.random() < 0.3:
            raise draw.choice([ValueError, KeyError, RuntimeError, AttributeError])("no number")

    def __float__(self) -> float:
        self._meddle()
        return 0.5

    def __bool__(self) -> bool:
        self._meddle()
        return True

    def item(self) -> Any:
        self._meddle()
        return self.case.draw.choice([0.1, "x", None, self])

    def __len__(self) -> int:
        self._meddle()
        return 2

    def __getitem__(self, index: int) -> Any:
        self._meddle()
        return self if index < 2 else 1 // 0


class Tagged(Tensor):
    """A subclass whose gradient is found by Python code."""

    case: Any = None

    @property
    def grad(self) -> Any:  # type: ignore[override]
        if self.case is not None:
            meddle(self.case)
        return torch.ones(3)

    @grad.setter
    def grad(self, value: Any) -> None:
        meddle(self.case)


class Spoof:
    """Says that it is a tensor."""

    __class__ = torch.nn.Parameter  # type: ignore[assignment]
    __dlpack_c_exchange_api__ = torch.Tensor.__dlpack_c_exchange_api__
    shape, dtype, device, grad = (3,), torch.float32, torch.device("cpu"), torch.ones(3)


class Params(list):  # type: ignore[type-arg]
    """A list that grows and shrinks while it is walked."""

    case: Any = None

    def __iter__(self) -> Any:
        for item in super().__iter__():
            meddle(self.case)
            yield item


class Once:
    """An iterator, whose items can be looked up for all that."""

    def __init__(self, items: tuple[Any, ...]) -> None:
        self.items, self.left = items, iter(items)

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return next(self.left)


def items(params: Any) -> list[Any]:
    """The parameters of a group, in whatever they are."""
    params = params.items if isinstance(params, Once) else params
    return list(params) if isinstance(params, (list, tuple, dict)) else []


class Group(dict):  # type: ignore[type-arg]
    """A dict that meddles when it is read."""

    case: Any = None

    def __getitem__(self, key: Any) -> Any:
        meddle(self.case)
        return super().__getitem__(key)


def is_freed(x: Any) -> bool:
    """Whether a tensor has elements and no memory."""
    try:
        return bool(x.numel() > 0 and x.untyped_storage().nbytes() == 0)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False


def _free_memory(case: Any, p: Any) -> None:
    if not case.zeroing:
        p.untyped_storage().resize_(0)


def _exchange_memory(case: Any, p: Any) -> None:
    p.data = torch.ones_like(p.data)


MEDDLING: list[Callable[[Any, Any], Any]] = [
    _free_memory,
    _exchange_memory,
    lambda case, p: setattr(p, "grad", None),
    lambda case, p: _exchange_memory(case, p.grad),
    lambda case, p: _free_memory(case, p.grad),
    lambda case, p: _exchange_memory(case, p._local_tensor),
    lambda case, p: _free_memory(case, p.grad._local_tensor),
    lambda case, p: setattr(p.grad, "_local_tensor", torch.ones(3)),
    lambda case, p: delattr(p, "_local_tensor"),
    lambda case, p: setattr(p, "_spec", None),
    lambda case, p: case.state.clear(),
    lambda case, p: case.state.pop(p, None),
    lambda case, p: case.state.get(p, {}).clear(),
    lambda case, p: [_exchange_memory(case, x) for x in case.state.get(p, {}).values()],
    lambda case, p: [_free_memory(case, x) for x in case.state.get(p, {}).values()],
    lambda case, p: [g["params"].clear() for g in case.groups],
    lambda case, p: [g["params"].extend([p] * 50) for g in case.groups if len(g["params"]) < 200],
    lambda case, p: [dict.clear(g) for g in case.groups],
    lambda case, p: case.groups.clear(),
    lambda case, p: case.executor.clear(),
    lambda case, p: case.executor.prepare(case.groups, case.state, case.new_state, False),
    lambda case, p: case.zero_grads_if_torch_can(),
]


def meddle(case: Any) -> None:
    """Change something in the middle of a step."""
    if case.meddling:  # what is read for it may meddle too
        return
    case.meddling = True
    try:
        case.draw.choice(case.mutations)(case, case.draw.choice(case.params() or [torch.ones(1)]))
    except (LookupError, AttributeError, RuntimeError, TypeError, ValueError):
        pass
    finally:
        case.meddling = False
    gc.collect(0)


def _quantized() -> Tensor:
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8)


ODD: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "a number": lambda: 3,
    "a spoof": Spoof,
    "a subclass": lambda: torch.ones(3).as_subclass(Tagged),
    "empty storage": lambda: _resized(torch.ones(5), 0),
    "meta": lambda: torch.ones(3, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse csr": lambda: torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 3)),
    "quantized": _quantized,
    "nested": lambda: torch._nested_tensor_from_tensor_list([torch.ones(2), torch.ones(3)]),
    "mkldnn": lambda: torch.ones(3).to_mkldnn() if torch.backends.mkldnn.is_available() else 3,
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "conjugated": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "negated": lambda: (torch.ones(5) * (1 + 2j)).conj().imag,
    "bool": lambda: torch.ones(3, dtype=torch.bool),
    "int8": lambda: torch.ones(3, dtype=torch.int8),
    "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "zero tensor": lambda: torch._efficientzerotensor((5,)),
    "64 dimensions": lambda: torch.ones([1] * 63 + [2]),
    "65 dimensions": lambda: torch.ones(2).as_strided([1] * 64 + [2], [1] * 64 + [1]),
    "empty, huge": lambda: torch.empty(0).as_strided((0, 2**62, 2**62), (1, 2**62, 2**62)),
    "huge, expanded": lambda: torch.ones(1).expand(2**62),
    "overlapping": lambda: torch.arange(4.0).as_strided((2, 3), (1, 1)),
    "huge stride": lambda: torch.ones(1).as_strided((1, 1), (2**62, 2**60)),
    "odd offset": lambda: torch.empty(0).set_(torch.arange(9.0).untyped_storage(), 3, (2, 2), (3, 1)),
    "misaligned": lambda: torch.frombuffer(bytearray(21), dtype=torch.float32, offset=1),
    "misaligned double": lambda: torch.frombuffer(bytearray(9), dtype=torch.float64, offset=1),
    "read only": lambda: torch.ones(3).requires_grad_() * 2,
    "0 dimensions": lambda: torch.tensor(1.0),
    "float64": lambda: torch.ones(3, dtype=torch.float64),
    "two elements": lambda: torch.ones(2),
    "list": lambda: [1.0, 2.0],
}
VALUES: list[Callable[[], Any]] = [
    *ODD.values(), lambda: float("nan"), lambda: float("inf"), lambda: -1.0, lambda: 10**400, lambda: True,
    lambda: "0.1", lambda: "\ud800", lambda: 1j, lambda: (0.9,), lambda: [0.9, "x"], lambda: (None, None), dict, object,
]  # fmt: skip


def _resized(x: Tensor, size: int) -> Tensor:
    x.untyped_storage().resize_(size)
    return x


def _some_param(case: Any) -> Any:
    return case.draw.choice(case.params() or [torch.ones(1)])


def odd_param(case: Any) -> str:
    """A parameter of a strange kind, with a gradient where it can have one."""
    name, make = case.draw.choice(list(ODD.items()))
    param = make()
    grad = make() if case.draw.random() < 0.7 else ODD[case.draw.choice(list(ODD))]()
    with suppress(RuntimeError, AttributeError, TypeError):
        if type(grad) is not Spoof:  # torch's own setter of grad ends the process there
            param.grad = grad
    if isinstance(param, Tagged):
        param.case = case
    group = case.draw.choice(case.groups)
    group["params"].insert(case.draw.randrange(len(group["params"]) + 1), param)
    return f"parameter: {name}"


def odd_grad(case: Any) -> str:
    """A gradient that fits in shape and lies strangely, or has no memory."""
    p = _some_param(case)
    kind = case.draw.choice(["expanded", "transposed", "freed", "itself", "strided", "shifted"])
    if kind == "expanded":
        p.grad = torch.ones((), dtype=p.dtype).expand(p.shape)
    elif kind == "transposed" and p.dim() > 1:
        p.grad = torch.ones(p.shape[::-1], dtype=p.dtype).permute(*range(p.dim() - 1, -1, -1))
    elif kind == "freed":
        p.grad = _resized(torch.ones_like(p.data), 0)
    elif kind == "itself":
        p.grad = p.detach()
    elif kind == "strided":
        p.grad = torch.ones((*p.shape, 2), dtype=p.dtype)[..., 0]
    else:
        p.grad = torch.ones(p.numel() + 1, dtype=p.dtype)[1:].view(p.shape)
    return f"gradient: {kind}"


def odd_state(case: Any) -> str:
    """An entry of the state, or the whole, that lies."""
    p = _some_param(case)
    name, make = case.draw.choice(list(ODD.items()))
    key = case.draw.choice(["momentum_buffer", "exp_avg", "exp_avg_sq", "step", "step", None])
    try:
        if key is None:
            case.state[p] = make()
        else:
            own, value = case.state.setdefault(p, {}), make()
            if not (isinstance(own, Tensor) and type(value) is Spoof):  # torch's own assignment ends the process there
                own[key] = value
    except TypeError:
        pass
    return f"state {key}: {name}"


def alias(case: Any) -> str:
    """State that is the parameter, its gradient, or another's state."""
    p, q = _some_param(case), _some_param(case)
    case.state.setdefault(p, {}).update(case.state.get(q, {}))
    key = case.draw.choice(["exp_avg", "momentum_buffer", "step"])
    case.state[p][key] = case.draw.choice([p, p.grad, q, p.data.flatten()[:1]])
    return f"state {key}: another tensor of the step"


def odd_option(case: Any) -> str:
    """An option that is no number, or meddles while it is read."""
    group = case.draw.choice(case.groups)
    key = case.draw.choice([key for key in group if key != "params"] + ["foreach", "differentiable", "param_names"])
    group[key] = Number(case) if case.draw.random() < 0.5 else case.draw.choice(VALUES)()
    if key == "betas" and case.draw.random() < 0.5:
        group[key] = (Number(case), Number(case))
    return f"option {key}"


def missing(case: Any) -> str:
    """A group without one of its entries."""
    group = case.draw.choice(case.groups)
    group.pop(case.draw.choice(list(group)))
    group.setdefault("params", [])
    return "an entry of the group is missing"


def other_containers(case: Any) -> str:
    """Groups, parameters and state of other types."""
    kind = case.draw.randrange(5)
    if kind == 0:
        group = Group(case.groups[0])
        group.case = case
        case.groups[0] = group
    elif kind == 1:
        params = Params(case.groups[0]["params"])
        params.case = case
        case.groups[0]["params"] = params
    elif kind == 2:
        params = tuple(case.groups[0]["params"])
        case.groups[0]["params"] = case.draw.choice([params, Once(params), dict.fromkeys(params, 1)])
    elif kind == 3:
        case.state = type("State", (dict,), {"__missing__": lambda self, key: meddle(case)})(case.state)
    else:
        groups = Params(case.groups)
        groups.case = case
        case.groups = groups
    return f"container {kind}"


def meddling_new_state(case: Any) -> str:
    """New state that is wrong, or whose making changes what was seen."""
    make = case.new_state
    wrong = case.draw.random() < 0.4

    def new_state(param: Any, group: Any) -> Any:
        state = make(param, group)
        meddle(case)
        if wrong:
            state[case.draw.choice(list(state))] = case.draw.choice(VALUES)()
        return state

    case.new_state = new_state
    for p in case.params():
        if case.draw.random() < 0.7:
            case.state.pop(p, None)
    return "new_state meddles"


ALL: list[Callable[[Any], str]] = [
    odd_param, odd_param, odd_grad, odd_state, odd_state, alias, odd_option, odd_option, missing, other_containers,
    meddling_new_state, meddling_new_state,
]  # fmt: skip
