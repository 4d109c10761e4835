"""The storages that are compared: dtypes of parameters and gradients, and settings of the optimizer."""

from dataclasses import dataclass, field
from typing import Any

import torch

import fusedoptim

F32, BF16 = torch.float32, torch.bfloat16


@dataclass(frozen=True)
class Storage:
    param: torch.dtype = F32
    grad: torch.dtype = F32
    settings: dict[str, Any] = field(default_factory=dict)


def bytes_of(optimizer: Any) -> dict[str, float]:
    """Bytes of all and of the state, a parameter, once gradients are there."""
    sizes = fusedoptim.memory(optimizer)
    elements = sum(param.numel() for group in optimizer.param_groups for param in group["params"])
    state = sizes.total - sizes["parameters"] - sizes["gradients"]
    return {"bytes": sizes.total / elements, "state_bytes": state / elements}


PLAIN = "fp32"
STORAGES = {
    PLAIN: Storage(),
    "fp32, bf16 gradients": Storage(F32, BF16),
    "fp32, bf16 state": Storage(settings={"state_dtype": BF16}),
    "fp32, 8-bit state": Storage(settings={"state_dtype": "8bit"}),
    "bf16, fp32 master": Storage(BF16, BF16, {"master_weights": True}),
    "bf16, remainder": Storage(BF16, BF16, {"master_weights": "remainder"}),
    "bf16, remainder, 8-bit state": Storage(BF16, BF16, {"master_weights": "remainder", "state_dtype": "8bit"}),
    "bf16, Kahan": Storage(BF16, BF16, {"kahan_sum": True, "state_dtype": BF16}),
    "bf16, stochastic second moment": Storage(BF16, BF16, {"state_dtype": BF16}),
    "bf16, stochastic rounding": Storage(BF16, BF16, {"state_dtype": BF16, "stochastic_rounding": True}),
    "bf16 as in torch": Storage(BF16, BF16),
}
