"""Three optimizers to which the same is done: on the kernels, on the reference, and torch's for-loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from helpers import assert_optimizers_match, params_of, randn
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize
from torch import Tensor
from torch.nn import Parameter

import fusedoptim

SHAPES = [(4, 33), (), (7,), (0,), (3, 64)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def outcome(work: Callable[[], Any]) -> Any:
    """The type of the error, or of the warning, which under pytest is raised; or None."""
    try:
        work()
    except (RuntimeError, KeyError, TypeError, ValueError, UserWarning) as error:
        return type(error)
    return None


def assert_near(ours: Any, theirs: Any) -> None:
    """Equal keys, dtypes and shapes; and values that differ by no more than torch's roundings of intermediate results.

    A bfloat16 has 8 bits, and after a change of betas Adam's step may be some 18 lr, computed in four such roundings.
    """
    for i, (p, q) in enumerate(zip(params_of(ours), params_of(theirs), strict=True)):
        mine, wanted = ours.state.get(p) or {}, theirs.state.get(q) or {}
        assert set(mine) == set(wanted), f"state of parameter {i}"
        for key, x, y in [("value", p, q), *((key, mine[key], wanted[key]) for key in mine)]:
            largest = float(y.detach().abs().max()) if y.numel() else 0.0
            torch.testing.assert_close(
                x.detach(), y.detach(), rtol=0.05, atol=0.05 * (1 + largest),
                msg=lambda m, key=key, i=i: f"{key} of parameter {i}: {m}",
            )  # fmt: skip


class ThreeOptimizers(RuleBasedStateMachine):
    """``each`` does the same to all three and compares all that they hold."""

    @initialize(
        name=st.sampled_from(["SGD", "Adam", "AdamW"]),
        dtype=st.sampled_from(DTYPES),
        fused=st.sampled_from([None, True]),
        lr_is_tensor=st.booleans(),
    )
    def make(self, name: str, dtype: torch.dtype, fused: bool | None, lr_is_tensor: bool) -> None:
        self.seed = 0
        self.dtype = dtype
        self.backends = ["native", "reference"]  # of the first and the second
        self.schedulers: list[Any] = []
        self.all: list[Any] = []
        for module, options in [(fusedoptim, {"fused": fused})] * 2 + [
            (torch.optim, {"foreach": False, "fused": False})
        ]:
            lr: Any = torch.tensor(0.01, dtype=torch.float64) if lr_is_tensor else 0.01  # shared by all groups
            self.all.append(getattr(module, name)(self.params(), lr=lr, **options))
        self.grads()

    def params(self) -> list[Parameter]:
        return [Parameter(randn(shape, i, self.dtype)) for i, shape in enumerate(SHAPES)]

    def grads(self) -> None:
        """A new gradient for each parameter that is not frozen."""
        self.seed += 1
        for optimizer in self.all:
            for i, p in enumerate(params_of(optimizer)):
                if p.requires_grad:
                    p.grad = randn(p.shape, 100 * self.seed + i, p.dtype)

    def each(self, change: Callable[[Any], Any], only_steps: bool = False) -> None:
        """To all three, each on its backend: all raise or none; with ``only_steps`` what raises has written nothing."""
        before = self._values() if only_steps else []
        outcomes = []
        for optimizer, backend in zip(self.all, [*self.backends, "auto"], strict=True):
            with fusedoptim.set_backend(backend):
                outcomes.append(outcome(lambda: change(optimizer)))  # noqa: B023
        assert outcomes[0] == outcomes[1], outcomes
        assert (outcomes[0] is None) == (outcomes[2] is None), outcomes
        first, second, theirs = self.all
        assert_optimizers_match(first, second, exact=True)
        if outcomes[0] is None:
            (assert_near if self.dtype == torch.bfloat16 else assert_optimizers_match)(first, theirs)
        elif only_steps:
            assert all(torch.equal(x, y) for x, y in zip(before, self._values(), strict=True))
        self._assert_grads_match(self.all if outcomes[0] is None else [first, second])
        self._sync()

    def _values(self) -> list[Tensor]:
        first = self.all[0]
        return [x.detach().clone() for p in params_of(first) for x in (p, *(first.state.get(p) or {}).values())]

    def _assert_grads_match(self, optimizers: list[Any]) -> None:
        for p, *others in zip(*map(params_of, optimizers), strict=True):
            for q in others:
                assert (p.grad is None) == (q.grad is None)
                assert p.requires_grad == q.requires_grad
                if p.grad is not None:
                    assert p.grad.dtype == q.grad.dtype
                    assert torch.equal(p.grad, q.grad)

    def _sync(self) -> None:
        """Small differences in Adam's last bits must not add up, nor may what torch did of a step that it broke off."""
        ours, _, theirs = self.all
        with torch.no_grad():
            for p, q in zip(params_of(ours), params_of(theirs), strict=True):
                q.copy_(p)
                if p.grad is not None and not torch.equal(p.grad, q.grad):  # unscaled, and then an error
                    q.grad.copy_(p.grad)
                own, copied = ours.state.get(p), theirs.state.get(q)
                if own is None:
                    theirs.state.pop(q, None)
                elif copied is None or set(own) != set(copied):
                    theirs.state[q] = {key: value.clone() for key, value in own.items()}
                else:
                    for key, value in own.items():
                        copied[key].copy_(value)
