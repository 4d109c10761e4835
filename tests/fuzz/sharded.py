"""DTensors for a case of ``boundary.py`` that hold and say what none of torch's would. They need no process group."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import hostile
import torch
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard


class Placement:
    """Looks like a placement, and meddles when it is asked."""

    def __init__(self, case: Any) -> None:
        self.case = case

    def is_partial(self) -> Any:
        hostile.meddle(self.case)
        return self.case.draw.choice([False, False, True, hostile.Number(self.case), "yes"])

    def __eq__(self, other: object) -> Any:
        hostile.meddle(self.case)
        return self.case.draw.choice([True, True, False, torch.ones(2)])

    __hash__ = object.__hash__


class Spec:
    """Says on which mesh a DTensor lies, and meddles."""

    def __init__(self, case: Any) -> None:
        draw = self.case, self.draw = case, case.draw
        self.own = [
            draw.choice([Shard(0), Replicate(), Partial(), Placement(case), 3]) for _ in range(draw.randrange(3))
        ]

    @property
    def mesh(self) -> Any:
        hostile.meddle(self.case)
        return self.draw.choice([None, None, Placement(self.case), 3])

    @property
    def placements(self) -> Any:
        hostile.meddle(self.case)
        return self.own if self.draw.random() < 0.9 else self.draw.choice([None, 3, iter(self.own), {1: 2}, "ab"])

    @property
    def shard_order(self) -> Any:
        if self.draw.random() < 0.2:
            raise self.draw.choice([AttributeError, ValueError])
        return ()


def _dtensor(case: Any, local: Any, spec: Any) -> Any:
    made = torch.Tensor._make_wrapper_subclass(DTensor, (3,), dtype=torch.float32)  # type: ignore[attr-defined]
    if case.draw.random() < 0.95:
        made._local_tensor = local
    if case.draw.random() < 0.95:
        made._spec = spec
    return made


def dtensor(case: Any) -> str:
    """A parameter, its gradient and its state as DTensors; what lies in them is sound, odd, or shared."""
    draw, spec = case.draw, Spec(case)

    def local() -> Any:
        if draw.random() < 0.25:
            return draw.choice(list(hostile.ODD.values()))()
        return case.guarded(like) if draw.random() < 0.9 else case.guarded()

    def whole() -> Any:
        return _dtensor(case, local(), spec if draw.random() < 0.8 else Spec(case))

    first = case.guarded()
    like = case.guards[-1]
    param = _dtensor(case, first if draw.random() < 0.8 else local(), spec)
    with suppress(RuntimeError):
        param.grad = whole()
    if draw.random() < 0.6:
        names = ["momentum_buffer"] if case.rule == "sgd" else ["exp_avg", "exp_avg_sq"]
        case.state[param] = {**{name: whole() for name in names}, "step": torch.tensor(2.0)}
    draw.choice(case.groups)["params"].append(param)
    return "parameter: DTensor"
