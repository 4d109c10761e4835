"""Lion."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fusedoptim.reference.loop import ReferenceLoop
from fusedoptim.settings import with_settings
from fusedoptim.step import FusedStep


class LionLoop(ReferenceLoop):
    """Lion in torch's operations."""

    _rule = "lion"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        use_triton: bool = False,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        if decoupled_weight_decay and not lr > 0:
            raise ValueError(f"lr must be above 0 with decoupled_weight_decay, which divides by it, got {lr!r}")
        decay_lr = float(lr) if decoupled_weight_decay else 1.0
        options = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "decay_lr": decay_lr}
        super().__init__(params, {**options, "maximize": maximize})


class Lion(FusedStep, LionLoop):  # noqa: D101
    __doc__ = with_settings(r"""Lion, which moves each element by the sign of an interpolated gradient.

    The signature and the numbers are those of lion-pytorch, whose state dicts load. Chen et al., "Symbolic Discovery of
    Optimization Algorithms" (NeurIPS 2023), program 1. Learning rates are 3 to 10 times smaller than Adam's, and weight
    decay as many times larger.

    .. math::
        p &\leftarrow p (1 - \gamma \lambda) \\
        p &\leftarrow p - \gamma \operatorname{sign}(\beta_1 m + (1 - \beta_1) g) \\
        m &\leftarrow \beta_2 m + (1 - \beta_2) g

    Args:
        params (iterable): parameters, (name, parameter) pairs or groups of them
        lr (float or Tensor, optional): the learning rate, gamma (default: 1e-4)
        betas (tuple[float, float], optional): beta1 and beta2 (default: (0.9, 0.99))
        weight_decay (float, optional): lambda (default: 0)
        use_triton (bool, optional): taken, and not used: the kernels are there anyhow (default: False)
        decoupled_weight_decay (bool, optional): divide ``weight_decay`` by the learning rate that the optimizer is made
            with, so that the decay does not depend on it (default: False)
        maximize (bool, optional): ascend (default: False)
""")
    _torch_class = LionLoop
