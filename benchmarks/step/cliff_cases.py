"""The situations of `cliffs.py`: Adam on 400 tensors of 64 elements, with one thing odd in each."""

import enum
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.shared.measure import nothing
from benchmarks.shared.shapes import MODELS

LR = 1e-3
STEPS_BEFORE = 1  # that make the state
PLAIN = "plain"
Params = list[nn.Parameter]


class Subclass(Tensor):
    pass


class Kind(enum.Enum):
    ONE = 1


@dataclass(frozen=True)
class Situation:
    options: Mapping[str, Any] = field(default_factory=dict)  # of the constructor
    theirs: Mapping[str, Any] = field(default_factory=dict)  # of torch's constructor, beside these
    odd: Callable[[], nn.Parameter] | None = None  # makes a parameter that takes the place of the first
    by_torch: bool = False  # the first parameter is left to torch's own implementation, and its cost there allowed for
    groups: Callable[[Params], Any] = list  # what the constructor gets for the parameters
    change: Callable[[Any], object] = nothing  # what is done to the optimizer, whose state is there
    arguments: tuple[Any, ...] = ()  # of each step

    def optimizer(self, module: ModuleType, wide: bool = False, alone: bool = False) -> Any:
        """Adam of a module in this situation, its state there; in float64 if `wide`; `alone`: on the first alone."""
        params = [parameter(shape) for shape in MODELS["400x64"].shapes]
        params[:1] = [self.odd()] if self.odd else params[:1]
        params = params[:1] if alone else params
        params = [widened(p) for p in params] if wide else params
        theirs = self.theirs if module is torch.optim else {}
        optimizer = module.Adam(self.groups(params), **{"lr": LR, **self.options, **theirs})
        for _ in range(STEPS_BEFORE):
            optimizer.step()
        self.change(optimizer)
        return optimizer


def parameter(
    shape: tuple[int, ...] = (64,),
    dtype: torch.dtype = torch.float32,
    grad: Callable[[Tensor], Tensor] = Tensor.clone,
    cls: type[Tensor] = Tensor,
) -> nn.Parameter:
    """A parameter with a gradient, made from one whose elements differ."""
    count = torch.Size(shape).numel()
    p = nn.Parameter(torch.linspace(-0.5, 0.5, count).reshape(shape).to(dtype).as_subclass(cls))  # type: ignore[arg-type]
    p.grad = grad(torch.linspace(0.01, 0.02, count).reshape(shape).to(dtype)).as_subclass(cls)
    return p


def widened(p: nn.Parameter) -> nn.Parameter:
    """The same as an ordinary parameter of float64 or complex128, frozen if it was."""
    dtype = torch.complex128 if p.is_complex() else torch.float64
    wide = nn.Parameter(p.detach().as_subclass(Tensor).to(dtype), requires_grad=p.requires_grad)  # type: ignore[arg-type]
    wide.grad = None if p.grad is None else p.grad.detach().as_subclass(Tensor).to(dtype)  # type: ignore[arg-type]
    return wide


def convolution() -> nn.Parameter:
    """The weight of `Conv2d(8, 16, 1)` that was fed channels_last: its gradient has other strides, of no meaning."""
    layer = nn.Conv2d(8, 16, 1, bias=False)
    (weight,) = layer.parameters()
    weight.detach().copy_(torch.linspace(-0.5, 0.5, 128).reshape(16, 8, 1, 1))
    out = layer(torch.ones(2, 8, 3, 3).to(memory_format=torch.channels_last))
    out.backward(torch.full_like(out, 1e-3))
    return weight


def entry(value: Any) -> Situation:
    """The group has an entry that nobody reads."""
    return Situation(groups=lambda params: [{"params": params, "note": value}])


def state_of(optimizer: Any, kind: type[Any], count: int | None) -> None:
    """Makes the state of the first parameters a mapping of another kind."""
    for p in list(optimizer.state)[:count]:
        optimizer.state[p] = kind(optimizer.state[p])


def scaled(optimizer: Any) -> None:
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(0.0)


SITUATIONS: dict[str, Situation] = {
    PLAIN: Situation(),
    "`lr=np.float64(1e-3)`": Situation({"lr": np.float64(LR)}),
    "`lr=np.float32(1e-3)`": Situation({"lr": np.float32(LR)}),
    "`lr=torch.tensor(1e-3)`": Situation({"lr": torch.tensor(LR)}),
    "group entry: a dict": entry({"a": 1}),
    "group entry: a set": entry({1}),
    "group entry: a NumPy scalar": entry(np.float64(1)),
    "group entry: a function": entry(scaled),
    "group entry: a `torch.dtype`": entry(torch.float32),
    "group entry: an enum's member": entry(Kind.ONE),
    "group entry: of a subclass of str": entry(type("Text", (str,), {})("note")),
    "state of one parameter: an OrderedDict": Situation(change=partial(state_of, kind=OrderedDict, count=1)),
    "state of all parameters: OrderedDicts": Situation(change=partial(state_of, kind=OrderedDict, count=None)),
    "`state`: a dict": Situation(change=lambda o: setattr(o, "state", dict(o.state))),
    "`state`: an OrderedDict": Situation(change=lambda o: setattr(o, "state", OrderedDict(o.state))),
    "one parameter: 6 dimensions": Situation(odd=partial(parameter, (2,) * 6)),
    "one parameter: complex": Situation(odd=partial(parameter, dtype=torch.complex64), by_torch=True),
    "one parameter: float16": Situation(odd=partial(parameter, dtype=torch.float16)),
    "one parameter: bfloat16": Situation(odd=partial(parameter, dtype=torch.bfloat16)),
    "one parameter: of a tensor subclass": Situation(odd=partial(parameter, cls=Subclass), by_torch=True),
    "one parameter: frozen": Situation(odd=lambda: nn.Parameter(torch.ones(64), requires_grad=False)),
    "one gradient: transposed": Situation(odd=partial(parameter, (8, 8), grad=lambda g: g.t().contiguous().t())),
    "one gradient: expanded": Situation(odd=partial(parameter, grad=lambda g: g[:1].expand(64))),
    "one gradient: of `Conv2d(8, 16, 1)`, channels_last": Situation(odd=convolution),
    "8 groups": Situation(groups=lambda params: [{"params": params[k::8]} for k in range(8)]),
    "one parameter: in a group with `foreach=True`": Situation(
        groups=lambda params: [{"params": params[:1], "foreach": True}, {"params": params[1:]}], by_torch=True
    ),
    "a step hook": Situation(change=lambda o: o.register_step_post_hook(lambda *_: None)),
    "a closure": Situation(arguments=(lambda: 0.0,)),
    "a learning rate scheduler": Situation(change=lambda o: torch.optim.lr_scheduler.StepLR(o, 10**6)),
    "`grad_scale` 1, `found_inf` 0": Situation(theirs={"fused": True}, change=scaled),  # its for-loop refuses
}
