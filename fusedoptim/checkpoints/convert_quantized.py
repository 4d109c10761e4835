"""Converters of Adam with moments in 8 bits or fewer: bitsandbytes, torchao and flashoptim.

Their moments become float32; loading stores them as the optimizer asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fusedoptim.checkpoints.checks import format_value
from fusedoptim.checkpoints.convert_common import (
    MATHEMATICS,
    MOMENTS,
    TORCH_ADAM,
    Dict,
    adam_group,
    check_keys,
    count,
    entries,
    require,
)

_ADEMAMIX = {"alpha", "t_alpha", "t_beta3"}
_WRAPPED = "__bnb_optimizer_quant_state__"
_BLOCK = 256  # of bitsandbytes, in the flattened tensor
_GROUP = 32  # of flashoptim, likewise


def is_of_bitsandbytes(group: Dict, state: Dict) -> bool:
    """Whether it is a group of ``bitsandbytes.optim``, of any number of bits."""
    found = [state.get(index) for index in group["params"]]
    return "t_alpha" in group or any(isinstance(x, Mapping) and (_WRAPPED in x or "state1" in x) for x in found)


def adam_of_bitsandbytes(group: Dict, state: Dict, keep: frozenset[str], where: str) -> Dict:
    """``Adam`` and ``AdamW``, which are both decoupled there, in 8 and 32 bits."""
    check_keys(group, TORCH_ADAM | _ADEMAMIX, keep, where)
    betas = tuple(group["betas"])
    require(len(betas) == 2 and not group.get("alpha"), f"{where} is of AdEMAMix, by its 'betas', {MATHEMATICS}")
    for index, entry in entries(group, state):
        place = f"state[{index!r}]"
        inner = entry.pop(_WRAPPED, {})
        require(isinstance(inner, Mapping), f"{place}[{_WRAPPED!r}] must be a dict, got {format_value(inner)}")
        entry.update(inner)
        require(
            "state2" in entry,
            f"{place} has no 'state2': it is of another optimizer than Adam, and bitsandbytes saves the same keys for "
            "SGD, Lion, RMSprop and Adagrad",
        )
        check_keys(entry, {"step", *(f"{x}{n}" for x in ("state", "qmap", "absmax") for n in "12")}, frozenset(), place)
        state[index] = {
            "step": count(entry.get("step"), f"{place}['step']"),
            "exp_avg": _of_bitsandbytes(entry, "1", place),
            "exp_avg_sq": _of_bitsandbytes(entry, "2", place),
        }
    return {**adam_group(group, betas, _ADEMAMIX, where), "decoupled_weight_decay": True}


def _of_bitsandbytes(entry: Dict, number: str, where: str) -> Tensor:
    codes = _tensor(entry, f"state{number}", {torch.uint8, torch.float32}, None, where)
    if codes.dtype == torch.float32:
        return codes
    require(codes.is_contiguous(), f"{where}['state{number}'] must be contiguous, as its blocks are")
    qmap = _tensor(entry, f"qmap{number}", {torch.float32}, 256, where)
    absmax = _tensor(entry, f"absmax{number}", {torch.float32}, -(-codes.numel() // _BLOCK), where)
    return _by_block(qmap[codes.int()], absmax, _BLOCK)


def is_of_torchao(group: Dict, state: Dict) -> bool:
    """Whether it is a group of ``torchao.optim``: lr is a tensor, and what newer classes of torch have is missing."""
    if "amsgrad" in group and "maximize" not in group and isinstance(group.get("lr"), Tensor):
        return True
    found = [state.get(index) for index in group["params"]]
    return any(_is_torchao(value) for x in found if isinstance(x, Mapping) for value in x.values())


def adam_of_torchao(group: Dict, state: Dict, keep: frozenset[str], where: str) -> Dict:
    """Its Adam and AdamW in 8 bits, 4 bits and FP8; state has the names of torch's."""
    check_keys(group, TORCH_ADAM, keep, where)
    for index, entry in entries(group, state):
        check_keys(entry, {"step", "max_exp_avg_sq", *MOMENTS}, frozenset(), f"state[{index!r}]")
        for name, value in entry.items():
            require(
                _is_torchao(value) or not isinstance(value, Tensor) or type(value) is Tensor,
                f"state[{index!r}][{name!r}] must be whole, got a {type(value).__name__}; gather it first",
            )
        state[index] = {name: x.dequantize() if _is_torchao(x) else x for name, x in entry.items()}
    return {**adam_group(group, tuple(group["betas"]), set(), where), "amsgrad": bool(group["amsgrad"])}


def _is_torchao(value: Any) -> bool:
    kind = type(value)
    return kind.__module__.startswith("torchao.optim.") and kind.__name__.startswith("OptimState")


def adam_of_flashoptim(group: Dict, state: Dict, keep: frozenset[str], where: str) -> Dict:
    """``FlashAdam`` and ``FlashAdamW``, whose moments are in 8 bits or in the dtype of the parameter."""
    require(
        "eps" in group,
        f"{where} has no 'eps': it is of flashoptim's Lion, {MATHEMATICS}, or of its SGD, which does not save nesterov",
    )
    check_keys(group, TORCH_ADAM | {"master_bytewidth", "quantize"}, keep, where)
    known = {"step", "error_bits", *(f"{name}{end}" for name in MOMENTS for end in ("", "::quantized", "::scales"))}
    for index, entry in entries(group, state):
        place = f"state[{index!r}]"
        check_keys(entry, known, frozenset(), place)
        require(
            entry.get("error_bits") is None,
            f"{place} has 'error_bits', which add to parameters that the file does not have: load those of "
            "get_fp32_model_state_dict(), and remove 'error_bits'",
        )
        state[index] = {
            "step": count(entry.get("step"), f"{place}['step']"),
            "exp_avg": _of_flashoptim(entry, "exp_avg", place),
            "exp_avg_sq": _of_flashoptim(entry, "exp_avg_sq", place),
        }
    return adam_group(group, tuple(group["betas"]), {"master_bytewidth", "quantize"}, where)


def _of_flashoptim(entry: Dict, name: str, where: str) -> Tensor:
    """First moments are ``2x / (1 + |x|)``, second ones ``sqrt(x)``, of what is relative to the scale."""
    if name in entry:
        return _tensor(entry, name, {torch.float32, torch.bfloat16, torch.float16}, None, where)
    is_first = name == "exp_avg"
    codes = _tensor(entry, f"{name}::quantized", {torch.int8 if is_first else torch.uint8}, None, where)
    require(codes.is_contiguous(), f"{where}['{name}::quantized'] must be contiguous, as its blocks are")
    halves = {torch.float16, torch.bfloat16}
    scale = _tensor(entry, f"{name}::scales", halves, -(-codes.numel() // _GROUP), where)
    scale = scale.view(torch.float16).float()  # of bfloat16 parameters, its bits are in a tensor of bfloat16
    x = codes.float() / (127 if is_first else 255)
    return _by_block(x / (2 - x.abs()), scale, _GROUP) if is_first else _by_block(x, scale, _GROUP).square()


def _by_block(x: Tensor, scale: Tensor, block: int) -> Tensor:
    return x * scale.repeat_interleave(block)[: x.numel()].view(x.shape)


def _tensor(entry: Dict, key: str, dtypes: set[torch.dtype], numel: int | None, where: str) -> Tensor:
    value = entry.get(key)
    fits = isinstance(value, Tensor) and value.dtype in dtypes and numel in (None, value.numel())
    found = f"{value.dtype} of {value.numel()}" if isinstance(value, Tensor) else format_value(value)
    wanted = " or ".join(sorted(str(dtype) for dtype in dtypes)) + (f" of {numel} elements" if numel else "")
    require(fits, f"{where}[{key!r}] must be {wanted}, got {found}")
    assert isinstance(value, Tensor)
    return value
