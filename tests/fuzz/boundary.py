"""Malformed arguments for the compiled module: every case must end in a result or a Python exception.

``python tests/fuzz/boundary.py --seconds 60 --seed 1`` runs random cases; on a build with sanitizers (``make fuzz``) a
bad access to memory ends the process. Parameters lie between guard bytes, which are looked at after each case.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import driver
import hostile
import sharded

import fusedoptim._C as _C

GUARD = 64
PATTERN = 0xA5


class Guarded:
    """Memory for a tensor, between bytes that nobody may write."""

    def __init__(self, draw: random.Random) -> None:
        self.shape = draw.choice([(), (1,), (5,), (3, 4), (17,), (2, 3, 5), (300,), (0,), (0, 4)])
        self.dtype = draw.choice([torch.float32] * 4 + [torch.float64, torch.bfloat16, torch.float16])
        count = 1
        for size in self.shape:
            count *= size
        self.bytes = count * self.dtype.itemsize
        self.memory = torch.full((2 * GUARD + self.bytes,), PATTERN, dtype=torch.uint8)

    def tensor(self) -> Tensor:
        """The tensor, with small values."""
        inner = self.memory[GUARD : GUARD + self.bytes].view(self.dtype).view(self.shape)
        return inner.copy_(torch.linspace(0.1, 1, max(inner.numel(), 1))[: inner.numel()].view(self.shape))

    def is_whole(self) -> bool:
        """Whether nobody has written around it."""
        if self.memory.untyped_storage().nbytes() == 0:
            return True  # given back by the case itself
        around = torch.cat([self.memory[:GUARD], self.memory[GUARD + self.bytes :]])
        return bool((around == PATTERN).all())


class Case:
    """An optimizer's groups and state, sound at first and then spoiled in some places."""

    mutations = hostile.MEDDLING

    def __init__(self, seed: int) -> None:
        self.draw = draw = random.Random(seed)
        self.rule = draw.choice(["sgd", "adam"])
        self.guards: list[Guarded] = []
        self.meddling = True  # not before the calls
        self.zeroing = False
        self.state: Any = defaultdict(dict) if draw.random() < 0.5 else {}
        self.groups: Any = [self._group() for _ in range(draw.choice([1, 1, 2, 3]))]
        self.spoiled = [self._spoil() for _ in range(draw.choice([0, 1, 1, 2, 3]))]
        self.meddling = False

    def _spoil(self) -> str:
        way = self.draw.choice([*hostile.ALL, sharded.dtensor])
        try:
            return way(self)
        except (LookupError, AttributeError, RuntimeError, TypeError, ValueError) as error:  # it was spoiled before
            return f"{way.__name__}: {error}"

    def guarded(self, like: Guarded | None = None) -> Tensor:
        """A tensor between guards, of a shape and dtype drawn at random or those of another."""
        guard = Guarded(self.draw)
        if like is not None:
            guard.__dict__.update(
                shape=like.shape, dtype=like.dtype, bytes=like.bytes, memory=torch.full_like(like.memory, PATTERN)
            )
        self.guards.append(guard)
        return guard.tensor()

    def _group(self) -> dict[str, Any]:
        draw = self.draw
        params = []
        for _ in range(draw.randrange(4)):
            param = torch.nn.Parameter(self.guarded())
            like = self.guards[-1]
            if draw.random() < 0.9:
                param.grad = self.guarded(like)
            if draw.random() < 0.6:
                names = ["momentum_buffer"] if self.rule == "sgd" else ["exp_avg", "exp_avg_sq"]
                self.state[param] = {name: self.guarded(like) for name in names}
                if self.rule == "adam":
                    self.state[param]["step"] = torch.tensor(2.0)
            params.append(param)
        options = {"lr": 0.1, "weight_decay": draw.choice([0, 0.1]), "maximize": draw.random() < 0.2}
        if self.rule == "sgd":
            options |= {"momentum": draw.choice([0, 0.9]), "dampening": 0, "nesterov": False}
        else:
            options |= {"betas": (0.9, 0.99), "eps": 1e-8, "amsgrad": False, "decoupled_weight_decay": False}
        return {"params": params, **options, "fused": draw.choice([None, None, True])}

    def params(self) -> list[Any]:
        """All parameters, as far as there are lists of them."""
        return [
            p for g in self.groups if isinstance(g, dict) and isinstance(g.get("params"), list) for p in g["params"]
        ]

    def new_state(self, param: Any, group: Any) -> Any:
        """As an optimizer makes it."""
        names = ["momentum_buffer"] if self.rule == "sgd" else ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
        return {**{name: torch.zeros_like(param) for name in names}, "step": torch.tensor(0.0)}

    def zero_grads_if_torch_can(self) -> None:
        """Torch's own zero_, which takes odd gradients, ends the process without memory; 2**62 elements last."""
        params = [p for g in self.groups if isinstance(g, dict) for p in hostile.items(g.get("params"))]
        grads = [p.grad for p in params if isinstance(p, Tensor) and type(p) is not hostile.Tagged]
        if not any(hostile.is_freed(x) or (isinstance(x, Tensor) and x.numel() > 2**40) for x in grads):
            self.zeroing = True
            try:
                self.executor.zero_grads(self.groups, 2)
            finally:
                self.zeroing = False

    def calls(self) -> Any:
        """Use the module as a step does, and out of order."""
        draw, executor = self.draw, _C.StepExecutor(self.rule)
        self.executor = executor
        kernels = draw.choice(_C.supported())
        threads = draw.choice([1, 1, 2, 0, -3, 10**6])

        def step() -> Any:
            foreign = executor.prepare(self.groups, self.state, self.new_state, draw.random() < 0.5)
            scale = draw.choice([None, None, 2.0, 0.0, float("nan"), "2", hostile.Number(self)])
            drop = draw.choice([None, None, self.groups, 3])
            return foreign, executor.apply(self.state, kernels, threads, draw.random() < 0.5, scale, None, drop)

        other = [
            lambda: executor.apply(self.state, kernels, threads, True, None, None),
            self.zero_grads_if_torch_can,
            lambda: _C.set_grads_to_none(self.groups),
            lambda: _C.is_on_cuda(draw.choice([*self.params(), None, 3, "x", self])),
            executor.clear,
            executor.is_skipped_by_host,
            lambda: executor.prepare(draw.choice([None, 3, [3], [[]], [{}], "ab"]), self.state, self.new_state, False),
            lambda: executor.prepare(self.groups, draw.choice([None, [], 3]), self.new_state, False),
            lambda: executor.prepare(self.groups, self.state, draw.choice([None, 3, lambda p, g: 3]), False),
            lambda: executor.apply(draw.choice([None, 3]), draw.choice([None, kernels]), threads, False, None, None),
        ]
        return [step, *(draw.choice([step, *other]) for _ in range(draw.randrange(1, 4)))]


def run(seed: int) -> str:
    """Run one case, and say how it ended."""
    case = Case(seed)
    outcome = "clean"
    for call in case.calls():
        try:
            call()
        except Exception as error:
            outcome = type(error).__name__
    for guard in case.guards:
        assert guard.is_whole(), f"case {seed}: written beyond a tensor of shape {guard.shape}: {case.spoiled}"
    return outcome


if __name__ == "__main__":
    driver.main(run, str(__doc__))
