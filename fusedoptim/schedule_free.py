"""Schedule-free AdamW and SGD."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusedoptim.reference.arithmetic import lerp
from fusedoptim.reference.loop import ReferenceLoop
from fusedoptim.settings import with_settings
from fusedoptim.step import FusedStep
from fusedoptim.torch_internals.dtensor import local_of

_NOT_TRAINING = (
    "the parameters hold the averages that eval() has put there; call optimizer.train() before the training, and "
    "optimizer.eval() before the evaluation"
)
_SCHEDULE = r"""
        warmup_steps (int, optional): steps within which the learning rate grows, linearly (default: 0)
        r (float, optional): the weight of an iterate in the average grows with this power of the step (default: 0)
        weight_lr_power (float, optional): and with this power of the largest learning rate so far (default: 2)
        foreach (bool, optional): taken, and not used: the kernels are there anyhow
        maximize (bool, optional): ascend (default: False)
"""
_MODES = r"""
    The parameters are y while the optimizer is in ``train()``, and the averages x in ``eval()``; both leave z in the
    state. As in the package, an optimizer is not in ``train()`` until that is called, and files are saved in
    ``eval()``. Learning-rate schedules are not needed. With BatchNorm the running statistics belong to y: run some
    forward passes in training mode of the model after ``eval()``, before the model's own.
"""


class ScheduleFreeLoop(ReferenceLoop):
    """A schedule-free optimizer in torch's operations."""

    def __init__(self, params: Any, lr: float | Tensor, schedule: dict[str, Any], **options: Any) -> None:
        written = {"k": 0, "train_mode": False, "weight_sum": 0.0, "lr_max": -1.0, "scheduled_lr": 0.0}
        super().__init__(params, {"lr": lr, **options, **schedule, **written, "foreach": None})

    def eval(self) -> None:
        """Give the parameters the averages of all iterates, for evaluation."""
        self._move(False)

    def train(self) -> None:
        """Give the parameters back the points where gradients are taken, for training."""
        self._move(True)

    @torch.no_grad()
    def _move(self, to_train: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] == to_train:
                continue
            beta = float(group["momentum"] if "momentum" in group else group["betas"][0])
            for param in group["params"]:
                state = self.state.get(param, {})
                if "z" not in state:
                    continue
                y, z = local_of(param), local_of(state["z"]).to(param.device)
                wide = torch.float64 if y.dtype == torch.float64 else torch.float32
                y, z = (torch.view_as_real(x) if x.is_complex() else x for x in (y, z))
                master = state.get("master_param")
                if master is None or master.dtype != torch.float32:
                    y.copy_(lerp(y.to(wide), z.to(wide), 1 - beta if to_train else 1 - 1 / beta))
                else:  # which stays as it is
                    y.copy_(local_of(master) if to_train else lerp(local_of(master), z.to(wide), 1 - 1 / beta))
            group["train_mode"] = to_train

    def _check_ready(self) -> None:
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError(_NOT_TRAINING)


class _ScheduleFreeStep(FusedStep):
    """Refuses a step outside of training."""

    def _take_step(self, closure: Any = None, *, zero_grad: str | None = None) -> Any:
        self._check_ready()  # type: ignore[attr-defined]
        return super()._take_step(closure, zero_grad=zero_grad)


class AdamWScheduleFreeLoop(ScheduleFreeLoop):
    """Schedule-free AdamW in torch's operations."""

    _rule = "adamw_schedule_free"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
    ) -> None:
        schedule = {"warmup_steps": warmup_steps, "r": r, "weight_lr_power": weight_lr_power}
        if betas[0] == 0:
            raise ValueError(f"betas[0] must be above 0, got {betas!r}: the averages follow from y and z only then")
        super().__init__(params, lr, schedule, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize)


class SGDScheduleFreeLoop(ScheduleFreeLoop):
    """Schedule-free SGD in torch's operations."""

    _rule = "sgd_schedule_free"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
    ) -> None:
        schedule = {"warmup_steps": warmup_steps, "r": r, "weight_lr_power": weight_lr_power}
        if not 0 < momentum < 1:
            raise ValueError(f"momentum must be above 0 and below 1, got {momentum!r}")
        super().__init__(params, lr, schedule, momentum=momentum, weight_decay=weight_decay, maximize=maximize)


class AdamWScheduleFree(_ScheduleFreeStep, AdamWScheduleFreeLoop):  # noqa: D101
    __doc__ = with_settings(
        r"""Schedule-free AdamW: no learning-rate schedule, and averages of the iterates to evaluate.

    Signature and numbers are those of the package schedulefree, whose state dicts load. Defazio et al., "The Road Less
    Scheduled" (NeurIPS 2024), algorithm 1.

    .. math::
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        d &= g \Big/ \left( \sqrt{v} \big/ \sqrt{1 - \beta_2^t} + \epsilon \right) + \lambda y \\
        y &\leftarrow y + c (z - y) - \gamma (1 - \beta_1 (1 - c)) d \\
        z &\leftarrow z - \gamma d, \qquad x = y + (1 - 1 / \beta_1) (z - y)
"""
        + _MODES
        + r"""
    Args:
        params (iterable): parameters, (name, parameter) pairs or groups of them
        lr (float, optional): the learning rate, gamma (default: 0.0025)
        betas (tuple[float, float], optional): beta1 and beta2 (default: (0.9, 0.999))
        eps (float, optional): epsilon (default: 1e-8)
        weight_decay (float, optional): lambda, decoupled, of y (default: 0)"""
        + _SCHEDULE
    )
    _torch_class = AdamWScheduleFreeLoop


class SGDScheduleFree(_ScheduleFreeStep, SGDScheduleFreeLoop):  # noqa: D101
    __doc__ = with_settings(
        r"""Schedule-free SGD: no learning-rate schedule, and averages of the iterates to evaluate.

    Signature and numbers are those of the package schedulefree, whose state dicts load. Defazio et al., "The Road Less
    Scheduled" (NeurIPS 2024).

    .. math::
        g &\leftarrow g + \lambda y \\
        y &\leftarrow y + c (z - y) - \gamma (1 - \beta (1 - c)) g \\
        z &\leftarrow z - \gamma g, \qquad x = y + (1 - 1 / \beta) (z - y)
"""
        + _MODES
        + r"""
    Args:
        params (iterable): parameters, (name, parameter) pairs or groups of them
        lr (float, optional): the learning rate, gamma (default: 1.0)
        momentum (float, optional): beta (default: 0.9)
        weight_decay (float, optional): lambda (default: 0)"""
        + _SCHEDULE
    )
    _torch_class = SGDScheduleFreeLoop
