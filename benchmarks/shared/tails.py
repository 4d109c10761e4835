"""What follows the backward pass in the loops that people write: the step, alone or with what stands around it.

`plain` is the step. `clip` also clips by the global norm. `clip+amp+ema` also scales the loss and averages the
parameters. torch's variants do it as its documentation shows; `fusedoptim-calls` makes the same calls of this package,
and `fusedoptim` leaves to the step what the step can do. The model computes in float32 all the same, so that float64
can tell what is correct: a scale that is a power of two changes no bit.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fusedoptim
from benchmarks.shared.measure import Call
from benchmarks.shared.variants import OURS, Variant

PLAIN = "plain"
TAILS = (PLAIN, "clip", "clip+amp+ema")
MAX_NORM, DECAY = 0.3, 0.999  # some gradients of the workloads are shorter: there a wrong scale is seen


def phases_of(tail: str) -> tuple[str, ...]:
    """The phases of a loop with this tail, in order; "scaler" is also after the step."""
    around = {"scaler": "amp" in tail, "clip": "clip" in tail, "step": True, "average": "ema" in tail}
    return ("zero_grad", "forward", "backward", *(phase for phase, is_there in around.items() if is_there))


class Tail:
    """An optimizer over the parameters of a model, and what a loop calls after its backward pass.

    The name is of `TAILS`, or any other "+" of its parts; the variant says also who clips, scales and averages.
    `begin` is called at the start of an iteration, and `calls`, each with its phase, after the backward pass.
    """

    def __init__(
        self, name: str, variant: Variant, rule: str, model: nn.Module, lr: float, zero_grad: str = "separate"
    ) -> None:
        clips, scales, averages = (part in name.split("+") for part in ("clip", "amp", "ema"))
        within = variant.name == OURS
        settings: dict[str, Any] = {"max_grad_norm": MAX_NORM} if clips and within else {}
        settings |= {"ema_decay": DECAY} if averages and within else {}
        settings |= {"fused": True} if scales and within else {}  # then the step divides by the scale
        self.optimizer = variant.build(rule, model.parameters(), lr, **settings)
        self.begin, step = variant.loop_calls(self.optimizer, zero_grad)
        self.scaler: Any = None
        self.average: nn.Module | None = None
        self.calls: list[tuple[str, Call]] = [("step", step)]
        if scales:
            scaler = (fusedoptim if variant.is_ours else torch.amp).GradScaler(next(model.parameters()).device.type)
            scaler.scale(next(model.parameters()).detach().sum())  # which makes the scale
            self.scaler = scaler
            options = step.keywords if isinstance(step, partial) else {}
            self.calls = [("step", partial(scaler.step, self.optimizer, **options)), ("scaler", scaler.update)]
        if clips and not within:
            clip = fusedoptim.clip_grad_norm_ if variant.is_ours else nn.utils.clip_grad_norm_
            self.calls.insert(0, ("clip", lambda: clip(model.parameters(), MAX_NORM)))
            if scales:
                self.calls.insert(0, ("scaler", partial(self.scaler.unscale_, self.optimizer)))
        if averages and not within:
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))  # type: ignore[no-untyped-call]
            self.average = average
            self.calls.append(("average", partial(average.update_parameters, model)))
        self.model, self.averages = model, averages

    @property
    def scale(self) -> float:
        return self.scaler.get_scale() if self.scaler else 1.0

    def run(self) -> None:
        for _, call in self.calls:
            call()

    def results(self) -> list[Tensor]:
        """The parameters, and after them their averages if there are any."""
        params = list(self.model.parameters())
        if not self.averages:
            return [p.detach() for p in params]
        averages = self.average.parameters() if self.average else (self.optimizer.state[p]["ema"] for p in params)
        return [p.detach() for p in (*params, *averages)]
