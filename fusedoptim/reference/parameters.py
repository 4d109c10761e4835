"""What the reference asks of a parameter and the options of its group before it takes a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fusedoptim.reference.rule import Rule, length_of, options_of, range_of
from fusedoptim.torch_internals.dtensor import local_of, refusal_of_sharding

PLAIN = (Tensor, torch.nn.Parameter)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SPARSE_GRAD = "its gradient is sparse"


def name_of(param: Tensor, group: dict[str, Any], index: int, position: int) -> str:
    """What errors and reports call the parameter at ``position`` of the group at ``index``."""
    names = group.get("param_names")
    called = f"'{names[position]}', " if names else ""
    return f"parameter {position} of group {index} ({called}shape {tuple(param.shape)}, {param.dtype}, {param.device})"


def flag_for_torch(group: dict[str, Any]) -> str | None:
    """The flag by which the user has asked for torch's own implementation, as in ``"foreach=True"``, or None."""
    for name in ("fused", "foreach", "differentiable"):
        value = group.get(name)
        if value is not None and bool(value) == (name != "fused"):
            return f"{name}={value!r}"
    return None


def is_torchs(group: dict[str, Any]) -> bool:
    """Whether the user has asked for torch's own implementation."""
    return flag_for_torch(group) is not None


def _format_value(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if type(value) in PLAIN else repr(value)


def average_decay(group: Mapping[str, Any]) -> float | None:
    """The decay of a group's averages, or None.

    Raises:
        ValueError: It is not from 0 to 1.
    """
    decay = group.get("ema_decay")
    if decay is None:
        return None
    if isinstance(decay, (str, bytes)) or not 0 <= float(decay) <= 1:
        raise ValueError(f"ema_decay must be None or from 0 to 1, got {decay!r}")
    return float(decay)


def as_numbers(rule: Rule, group: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The options of a group, tensors with one element as numbers; ``index``: of the group, for errors."""
    kinds = options_of(rule.update)

    def number(name: str, value: Any) -> Any:
        if length := length_of(kinds.get(name)):
            if not isinstance(value, (tuple, list)) or len(value) != length:
                how_many = "a pair of" if length == 2 else "three"
                raise TypeError(f"{name} must be {how_many} numbers, got {_format_value(value)}")
            return tuple(number(f"one of {name}", item) for item in value)
        plain = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if isinstance(plain, Tensor) or not hasattr(plain, "__float__"):
            raise TypeError(f"{name} must be a number or a tensor with one element, got {_format_value(value)}")
        return plain if isinstance(plain, bool) else float(plain)

    numbers = {name: number(name, value) for name, value in rule.options(group).items()}
    for name, pair in numbers.items():
        low, high = range_of(name)
        for position, one in enumerate(pair if length_of(kinds[name]) and high < 1 else ()):
            if one < low or one > high:  # NaN goes on to be NaN
                where = f"{name}[{position}] of parameter group {index}"
                raise ValueError(f"{where} must be at least 0 and less than 1, got {one}")
    return numbers


def is_expanded(x: Tensor) -> bool:
    """Whether one element stands for several, by a stride of 0."""
    return x.numel() > 0 and any(size > 1 and stride == 0 for size, stride in zip(x.shape, x.stride(), strict=True))


def shares_elements(x: Tensor) -> bool:
    """Whether elements of a tensor share memory; True where it is not certain."""
    reach = 0
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1):
        if stride <= reach:
            return x.numel() > 0
        reach += (size - 1) * stride
    return False


def refusal(param: Tensor) -> str | None:
    """Why the reference cannot take a parameter with this gradient, or None."""
    assert param.grad is not None
    reason = refusal_of_sharding(param, "gradient", param.grad)
    return reason or _refusal_of_plain(local_of(param), local_of(param.grad))


def _refusal_of_plain(param: Tensor, grad: Tensor) -> str | None:
    if type(param) not in PLAIN or type(grad) not in PLAIN:
        return "it or its gradient is a tensor subclass"
    if grad.is_sparse and param.layout == torch.strided:
        return SPARSE_GRAD
    if param.layout != torch.strided or grad.layout != torch.strided:
        return "it or its gradient is sparse"
    if param.device.type not in ("cpu", "cuda"):
        return "its device is not supported"
    if param.dtype not in DTYPES:
        return "its dtype is not float64, float32, bfloat16 or float16"
    if not is_expanded(param) and shares_elements(param):
        return "its elements may share memory"
    if grad.device != param.device or grad.shape != param.shape:
        return "its gradient has another device or shape"
    return None
