"""How parameters and states are stored, and the names of a parameter's state.

As ``csrc/core/storage.h`` says it and ``csrc/cpu/simd/stored.h`` does it: what is read is float32, and what is
written is rounded once, to the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

BLOCK = 256
"""Elements of a row that share a scale. Rows are along the last dimension, of which all but the first are one."""
SMALLEST_8BIT = 4096
"""Elements below which a tensor is not stored in 8 bits."""
_HALVES = (torch.bfloat16, torch.float16)
_DROPPED = 20  # bits of a float32 that 8 bits do not hold
_TOP = {False: 255, True: 127}  # code, without its sign
_BIAS = {sign: (127 << 23 >> _DROPPED) + 7 - top for sign, top in _TOP.items()}
_INFINITY, _NAN, _LEAST_SCALE = 0x7F800000, 0x7FC00000, 32 << 23


def is_late(name: str, own_names: tuple[str, ...]) -> bool:
    """Whether state may be missing beside other state: it begins when a group first asks for it."""
    return name not in own_names


def companion_of(group: Mapping[str, Any], param: Tensor) -> str | None:
    """``master``, ``remainder`` or ``compensation``: what a parameter of 16 bits has beside it, or None."""
    if param.dtype not in _HALVES:
        return None
    if group.get("master_weights"):
        return "remainder" if group["master_weights"] == "remainder" else "master"
    return "compensation" if group.get("kahan_sum") else None


COMPANION_NAMES = {"master": "master_param", "remainder": "master_param", "compensation": "kahan_comp"}


def dtype_asked(name: str, group: Mapping[str, Any]) -> Any:
    """What ``state_dtype`` of a group says of a state: a dtype, ``"8bit"`` or None."""
    asked = group.get("state_dtype")
    return asked.get(name) if isinstance(asked, dict) else asked


def dtype_of_new(name: str, group: Mapping[str, Any], param: Tensor) -> torch.dtype:
    """The dtype of a state that is made; ``torch.uint8`` for 8 bits."""
    asked = dtype_asked(name, group)
    if asked == "8bit":
        return torch.uint8 if param.numel() >= SMALLEST_8BIT and _has_whole_rows(param) else torch.float32
    if asked is None and param.dtype in _HALVES and group.get("master_weights"):
        return torch.float32
    return asked or param.dtype


def _has_whole_rows(param: Any) -> bool:
    spec = getattr(param, "_spec", None)
    if spec is None:
        return True
    return param.ndim >= 2 and all(p.is_replicate() or p.is_shard(0) for p in spec.placements)


def scale_shape(shape: torch.Size) -> tuple[int, ...]:
    """The shape of the scales of a tensor in 8 bits."""
    if len(shape) < 2:
        return (-(-shape.numel() // BLOCK),)
    return (shape[0], -(-shape[1:].numel() // BLOCK))


@dataclass(frozen=True)
class Storage:
    """How one parameter and its state are stored."""

    companion: str | None = None
    signs: dict[str, bool] = field(default_factory=dict)  # of states in 8 bits: whether they may be negative
    stochastic: frozenset[str] = frozenset()  # states, and "" for the parameter
    operands: dict[str, int] = field(default_factory=dict)  # the numbers of the states, as random bits know them
    seed: int = 0
    parameter: int = 0
    first_element: int = 0

    def read_param(self, param: Tensor, companion: Tensor | None) -> Tensor:
        """The number that a parameter stands for."""
        wide = param.double() if param.dtype == torch.float64 else param.float()
        if companion is None:
            return wide
        if self.companion == "compensation":
            return wide + companion.float()
        if self.companion == "master":  # a parameter that is not its master, rounded, was changed since
            return torch.where(_nearest(companion, param.dtype).float() == wide, companion, wide)
        own, rest = _bits(wide), companion.long()
        magnitude = own & 0x7FFFFFFF
        leads_out = ((magnitude == 0) & (rest < 0)) | ((magnitude >= _INFINITY) & (rest >= 0))
        return _from_bits(own + torch.where(leads_out, 0, rest))

    def write_param(self, x: Tensor, param: Tensor, companion: Tensor | None, step: float) -> None:
        """Round into a parameter, and its companion."""
        if companion is None:
            self._write_rounded("", x, param, step)
        elif self.companion == "compensation":
            param.copy_(x)
            companion.copy_(x - param.float())
        elif self.companion == "master":
            companion.copy_(x)
            param.copy_(_nearest(x, param.dtype))
        else:
            param.copy_(_nearest(x, param.dtype))
            bits = torch.where(x.isnan(), _NAN, _bits(x)) & 0xFFFF
            companion.copy_(torch.where(bits >= 0x8000, bits - 0x10000, bits))

    def read_state(self, name: str, value: Tensor, scale: Tensor | None) -> Tensor:
        """A state in its arithmetic type."""
        if name not in self.signs:
            return value.double() if value.dtype == torch.float64 else value.float()
        assert scale is not None
        if value.numel() == 0:
            return value.float()
        sign, blocks = self.signs[name], _in_blocks(value).long()
        code = blocks & 0x7F if sign else blocks
        bits = torch.where(code == 0, 0, (code + _BIAS[sign]) << _DROPPED)
        if sign:
            bits = bits | ((blocks & 0x80) << 24)
        return _out_of_blocks(_from_bits(bits) * scale.reshape(blocks.shape[:-1])[..., None], value.shape)

    def write_state(self, name: str, x: Tensor, value: Tensor, scale: Tensor | None, step: float | None) -> None:
        """Round into a state, and its scales; without a step to nearest."""
        if name not in self.signs:
            self._write_rounded(name, x, value, step or 0.0)
            return
        assert scale is not None
        if value.numel() == 0:
            return
        sign, blocks = self.signs[name], _in_blocks(x)
        magnitude = _bits(blocks) & 0x7FFFFFFF
        scales = _scale_of(magnitude.amax(-1))
        inverse = torch.where(scales == 254 << 23, 1 << 22, (254 << 23) - scales)
        bits = _bits(blocks * _from_bits(torch.where(scales == _NAN, 0, inverse))[..., None])
        relative = bits & 0x7FFFFFFF
        if sign or step is None:
            up = (1 << (_DROPPED - 1)) - 1 + ((relative >> _DROPPED) & 1)
        else:
            random = _in_blocks(self._random_bits(name, step, x.numel()).reshape(x.shape))
            up = (random << (_DROPPED - 16)) | (1 << (_DROPPED - 17))
        code = ((relative + up) >> _DROPPED) - _BIAS[sign]
        if sign:
            code = torch.where(code > 0, code | ((bits >> 24) & 0x80), 0)
        else:
            code = torch.maximum(code, (magnitude != 0).long())  # what is positive stays so
        code = torch.where(scales[..., None] == _NAN, _TOP[sign], code)
        value.copy_(_out_of_blocks(code, value.shape).to(torch.uint8))
        scale.copy_(_from_bits(scales).reshape(scale.shape))

    def _write_rounded(self, name: str, x: Tensor, value: Tensor, step: float) -> None:
        if name not in self.stochastic:
            value.copy_(x)
            return
        bits = _bits(x) + self._random_bits(name, step, x.numel()).reshape(x.shape)
        value.copy_(_from_bits(torch.where(x.isnan(), _NAN, bits & 0xFFFF0000)))

    def _random_bits(self, name: str, step: float, count: int) -> Tensor:
        operand = self.operands[name] if name else 0
        whole_step = int(step) if 0 <= step < 2.0**63 else 0
        return random_bits(self.seed, whole_step, self.parameter, operand, self.first_element, count)


def random_bits(seed: int, step: int, parameter: int, operand: int, first: int, count: int) -> Tensor:
    """16 random bits for each of ``count`` elements, of which ``first`` is the place of the first, as int64.

    Philox4x32-7 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): its key is the seed, and one
    counter serves 8 elements.
    """
    mask = 0xFFFFFFFF
    counters = torch.arange(first // 8, -(-(first + count) // 8))
    words = [
        counters & mask,
        (counters >> 32) | (operand << 24),
        torch.full_like(counters, parameter & mask),
        torch.full_like(counters, step & mask),
    ]
    k0, k1 = seed & mask, seed >> 32 & mask
    for _ in range(7):
        a, b = words[0] * 0xD2511F53, words[2] * 0xCD9E8D57  # modulo 2^64, of which all bits are right
        words = [(b >> 32 & mask) ^ words[1] ^ k0, b & mask, (a >> 32 & mask) ^ words[3] ^ k1, a & mask]
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    return torch.stack(halves, -1).reshape(-1)[first % 8 :][:count]


def _bits(x: Tensor) -> Tensor:
    """The bits of float32, as int64 without sign."""
    return x.contiguous().view(torch.int32).long() & 0xFFFFFFFF


def _from_bits(bits: Tensor) -> Tensor:
    low = bits & 0xFFFFFFFF
    return torch.where(low >= 1 << 31, low - (1 << 32), low).int().view(torch.float32)


def _nearest(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to nearest; of bfloat16 ties go away from zero, so that a remainder tells which way."""
    if dtype == torch.float16:
        return x.half()
    return _from_bits(torch.where(x.isnan(), _NAN, (_bits(x) + 0x8000) & 0xFFFF0000)).bfloat16()


def _scale_of(largest: Tensor) -> Tensor:
    """The bits of the scale of a block with this largest magnitude, in bits."""
    scale = (largest + (1 << _DROPPED) - 1) & _INFINITY
    scale = torch.where((scale == _INFINITY) | (largest > _INFINITY), _NAN, scale)
    return torch.where(scale < _LEAST_SCALE, _LEAST_SCALE, scale)


def _in_blocks(x: Tensor) -> Tensor:
    """Rows, blocks and the elements of each, zeros behind the last of a row."""
    rows = x.reshape(x.shape[0] if x.ndim >= 2 else 1, -1)
    in_row = -(-rows.shape[1] // BLOCK)
    padded = torch.nn.functional.pad(rows, (0, in_row * BLOCK - rows.shape[1]))
    return padded.reshape(rows.shape[0], in_row, BLOCK)


def _out_of_blocks(blocks: Tensor, shape: torch.Size) -> Tensor:
    rows = blocks.shape[0]
    return blocks.reshape(rows, -1)[:, : shape.numel() // rows].reshape(shape)
