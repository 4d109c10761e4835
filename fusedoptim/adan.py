"""Adan."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fusedoptim.reference.loop import ReferenceLoop
from fusedoptim.settings import with_settings
from fusedoptim.step import FusedStep


class AdanLoop(ReferenceLoop):
    """Adan in torch's operations."""

    _rule = "adan"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        no_prox: bool = False,
        foreach: bool = True,
        fused: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "no_prox": no_prox}
        super().__init__(params, {**options, "maximize": maximize, "foreach": None, "fused": None})


class Adan(FusedStep, AdanLoop):  # noqa: D101
    __doc__ = with_settings(r"""Adan, adaptive Nesterov momentum.

    Signature and numbers are those of the authors' code, which timm has as well. Xie et al., "Adan: Adaptive Nesterov
    Momentum Algorithm for Faster Optimizing Deep Models" (TPAMI 2024). Learning rates are 5 to 10 times Adam's.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        u &\leftarrow \beta_2 u + (1 - \beta_2) (g - g_{t-1}) \\
        v &\leftarrow \beta_3 v + (1 - \beta_3) (g + \beta_2 (g - g_{t-1}))^2 \\
        p &\leftarrow \left( p - \gamma \left( \frac{m}{1 - \beta_1^t} + \frac{\beta_2 u}{1 - \beta_2^t} \right)
            \Big/ \left( \sqrt{v} \big/ \sqrt{1 - \beta_3^t} + \epsilon \right) \right) \Big/ (1 + \gamma \lambda)

    Args:
        params (iterable): parameters, (name, parameter) pairs or groups of them
        lr (float or Tensor, optional): the learning rate, gamma (default: 1e-3)
        betas (tuple[float, float, float], optional): beta1, beta2 and beta3 (default: (0.98, 0.92, 0.99))
        eps (float, optional): epsilon (default: 1e-8)
        weight_decay (float, optional): lambda (default: 0)
        max_grad_norm (float, optional): clip the gradients of each step by their global norm; 0 does not (default: 0).
            The coefficient is that of ``torch.nn.utils.clip_grad_norm_``.
        no_prox (bool, optional): multiply by 1 - gamma lambda, as AdamW does, in place of the division (default: False)
        foreach (bool, optional): taken, and not used: the kernels are there anyhow
        fused (bool, optional): taken, and not used
        maximize (bool, optional): ascend (default: False)
""")
    _torch_class = AdanLoop
