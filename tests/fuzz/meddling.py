"""An optimizer that something else changes while its step is prepared and taken.

``python tests/fuzz/meddling.py --seconds 60 --seed 1`` runs random cases, ``--cases 1 --seed N`` one again. Whatever
is changed, and by whom (``mutations.py``, ``interrupters.py``), a call must end in a result or an exception that says
what is wrong; on a build with sanitizers (``make fuzz``) a bad access to memory ends the process. After that, what is
sound of the optimizer is put in order, and its next step must have the bits of the reference.
"""

from __future__ import annotations

import copy
import gc
import random
import re
import sys
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

sys.path.insert(0, str(Path(__file__).parent))
import driver
import hostile
import interrupters
import mutations

import fusedoptim

ALLOWED = (KeyError, TypeError, ValueError, AttributeError, RuntimeError, interrupters.Stop)
KNOWN = re.compile(  # messages of RuntimeErrors, ours and torch's
    "was replaced while the step|fused=True|this executor is in use|no number|expected dtype|size of tensor|must match"
    "|does not fit in parameter|doesn't match the broadcast"
    "|changed size during iteration|mutated during iteration|same dtype|share memory|no memory"
)
MUTATIONS = 20  # in one call
STATES = {"SGD": ["momentum_buffer"], "Adam": ["exp_avg", "exp_avg_sq", "step"]}
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    ("Adam", {"lr": 0.01}),
    ("AdamW", {"lr": 0.01, "maximize": True}),
]


class Case:
    """An optimizer, who interrupts its steps, and what they may do to it."""

    def __init__(self, seed: int) -> None:
        self.draw = draw = random.Random(seed)
        self.busy, self.left = True, 0  # not before the calls
        self.errors: list[Any] = []
        self.name, options = draw.choice(OPTIONS)
        self.interrupters = draw.sample(interrupters.ALL, draw.choice([1, 1, 1, 2]))
        self.rate = draw.choice([1, 0.3, 0.03])  # of the interruptions, how many change anything
        by_torch = any(i in interrupters.BY_TORCH for i in self.interrupters)
        freeing = not by_torch and interrupters.thread not in self.interrupters and draw.random() < 0.5
        fused = {"fused": True} if freeing else {}  # which leaves nothing to torch
        sizes = draw.choice([[0, 1, 5, 17, 64, 300], [4096, 5000, 6000], [1, 64, 5000]])
        count = draw.choice([1, 3, 10, 60])
        params = [Parameter(torch.full((draw.choice(sizes),), 0.25)) for _ in range(count)]
        many = draw.choice([1, 1, 2])
        groups = [{"params": params[k::many]} for k in range(many)]
        self.optimizer: Any = getattr(fusedoptim, self.name)(groups, **options, **fused)
        for p in params:
            mutations.new_grad(self, p)
        if draw.random() < 0.9:
            self.optimizer.step()
        self.saved = copy.deepcopy(self.optimizer.state_dict())
        if interrupters.thread in self.interrupters:
            ways = [m for m in mutations.GENTLE if m not in mutations.LOOKING_AT_GRADS]
        else:
            ways = mutations.GENTLE + mutations.EXCHANGING
        if freeing:
            ways = [m for m in ways if m not in mutations.LEFT_TO_TORCH] + mutations.FREEING
        self.mutations = draw.sample(ways, draw.choice([1, 3, len(ways)]))

    @property
    def state(self) -> Any:
        """Of the optimizer."""
        return self.optimizer.state

    @property
    def groups(self) -> Any:
        """Of the optimizer."""
        return self.optimizer.param_groups

    def params(self) -> list[Tensor]:
        """Of all groups."""
        return [p for group in self.groups for p in list.copy(dict.get(group, "params", []))]

    def meddle(self) -> None:
        """Changes something, or not."""
        if not self.meddling and self.draw.random() < self.rate:
            hostile.meddle(self)

    @property
    def meddling(self) -> bool:
        """Whether something is being changed, or nothing may be any more."""
        return self.busy or self.left <= 0

    @meddling.setter
    def meddling(self, value: bool) -> None:
        self.busy = value
        self.left -= value

    def call(self) -> None:
        """One call of the user's, interrupted."""
        draw, self.left = self.draw, MUTATIONS
        for p in self.params():
            if draw.random() < 0.9:
                mutations.new_grad(self, p)
        zero_grad = draw.choice([None, "to_zero", "to_none"])
        closure = self.meddle if draw.random() < 0.1 else None
        calls = [lambda: self.optimizer.step(closure, zero_grad=zero_grad)] * 4 + [
            lambda: self.optimizer.zero_grad(set_to_none=zero_grad == "to_none")
        ]
        call = draw.choice(calls)
        with ExitStack() as stack:
            for interrupter in self.interrupters:
                stack.enter_context(interrupter(self))
            self.busy = False
            try:
                call()
            finally:
                self.busy = True

    def put_in_order(self) -> None:
        """Leaves plain groups, plain parameters that have memory and gradients, and such state as is sound."""
        groups, seen = [], set()
        for group in self.groups:
            params = []
            for p in list.copy(dict.get(group, "params", [])):
                if id(p) in seen:
                    continue
                seen.add(id(p))
                if p.dtype != torch.float32 or hostile.is_freed(p):
                    p.grad = None
                    p.data = torch.ones(p.shape)
                p.grad = torch.linspace(-1, 1, max(p.numel(), 1))[: p.numel()].view(p.shape)
                params.append(p)
            options = {**self.optimizer.defaults, **dict.copy(group)}
            numbers = {"lr": 0.05, "weight_decay": 0.1, "maximize": False}
            groups.append({**options, **numbers, "params": params})
        state: Any = defaultdict(dict)
        for x in interrupters.tensors_of(self):
            vars(x).clear()  # of the garbage that was attached
        for p, own in dict.items(self.state):
            names = STATES.get(self.name, STATES["Adam"])
            if id(p) in seen and all(is_sound(dict.get(own, name), name, p) for name in names):
                state[p] = {name: dict.get(own, name) for name in names}
        self.optimizer.__dict__.update(param_groups=groups or [{**self.optimizer.defaults, "params": []}], state=state)
        self.optimizer.add_param_group({"params": [Parameter(torch.ones(9))]})

    def check(self) -> None:
        """Takes a step, and the same in the reference."""
        self.put_in_order()
        twin = copy.deepcopy(self.optimizer)
        for p, q in zip(self.params(), (q for g in twin.param_groups for q in g["params"]), strict=True):
            assert bool(p.isfinite().all()), "a parameter is not finite"
            q.grad = None if p.grad is None else p.grad.clone()
        self.optimizer.step()
        with fusedoptim.set_backend("reference"):
            twin.step()
        for p, q in zip(self.params(), (q for g in twin.param_groups for q in g["params"]), strict=True):
            assert torch.equal(p, q), f"a parameter of shape {tuple(p.shape)} differs from the reference"
            for name, x in twin.state[q].items():
                assert torch.equal(x, self.state[p][name]), f"{name} differs from the reference"


def is_sound(x: Any, name: str, p: Tensor) -> bool:
    """Whether state is as an optimizer makes it."""
    shape = torch.Size([]) if name == "step" else p.shape
    return isinstance(x, Tensor) and x.dtype == torch.float32 and x.shape == shape and not hostile.is_freed(x)


def run(seed: int) -> str:
    """Run one case, and say how it ended."""
    case = Case(seed)
    sys.unraisablehook = lambda error: case.errors.append(error.exc_value)
    who = " and ".join(interrupter.__name__ for interrupter in case.interrupters)
    outcome = "clean"
    try:
        for _ in range(case.draw.randrange(1, 5)):
            try:
                case.call()
            except ALLOWED as error:
                outcome = type(error).__name__
                if type(error) is RuntimeError and not KNOWN.search(str(error)):
                    raise
        case.check()
        strange = [error for error in case.errors if not isinstance(error, (*ALLOWED, LookupError))]
        assert not strange, strange
    except BaseException as error:
        raise AssertionError(f"case {seed}, interrupted by {who}") from error
    return outcome


if __name__ == "__main__":
    gc.freeze()  # so that a collection looks at what is new
    driver.main(run, str(__doc__))
