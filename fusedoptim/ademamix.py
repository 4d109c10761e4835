"""AdEMAMix."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fusedoptim.reference.loop import ReferenceLoop
from fusedoptim.settings import with_settings
from fusedoptim.step import FusedStep


class AdEMAMixLoop(ReferenceLoop):
    """AdEMAMix in torch's operations."""

    _rule = "ademamix"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 2.0,
        beta3_warmup: int | None = None,
        alpha_warmup: int | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        warmups = {"beta3_warmup": beta3_warmup or 0, "alpha_warmup": alpha_warmup or 0}
        options = {"lr": lr, "betas": betas, "alpha": alpha, **warmups, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**options, "maximize": maximize})


class AdEMAMix(FusedStep, AdEMAMixLoop):  # noqa: D101
    __doc__ = with_settings(r"""AdEMAMix, AdamW with a second, slow average of the gradients.

    Signature and numbers are those of the authors' code. Pagliardini, Ablin & Grangier, "The AdEMAMix Optimizer:
    Better, Faster, Older" (ICLR 2025). The warmups matter in long trainings; there they last as long as the training.

    .. math::
        m_1 &\leftarrow \beta_1 m_1 + (1 - \beta_1) g \\
        m_2 &\leftarrow \beta_3 m_2 + (1 - \beta_3) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        p &\leftarrow p (1 - \gamma \lambda) - \gamma
            \left( \frac{m_1}{1 - \beta_1^t} + \alpha m_2 \right)
            \Big/ \left( \sqrt{v} \big/ \sqrt{1 - \beta_2^t} + \epsilon \right)

    Args:
        params (iterable): parameters, (name, parameter) pairs or groups of them
        lr (float or Tensor, optional): the learning rate, gamma (default: 1e-3)
        betas (tuple[float, float, float], optional): beta1, beta2 and beta3 (default: (0.9, 0.999, 0.9999)). With
            beta1 = 0 the fast average takes no memory.
        alpha (float, optional): how much the slow average counts (default: 2)
        beta3_warmup (int, optional): steps within which beta3 grows from beta1, its half-life linearly (default: None)
        alpha_warmup (int, optional): steps within which alpha grows from 0, linearly (default: None)
        eps (float, optional): epsilon (default: 1e-8)
        weight_decay (float, optional): lambda, decoupled (default: 0)
        maximize (bool, optional): ascend (default: False)
""")
    _torch_class = AdEMAMixLoop
