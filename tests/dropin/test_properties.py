"""Random sequences of what users do, on the kernels, on the reference and on torch.optim, compared after each.

``FUSEDOPTIM_EXAMPLES=2000`` makes a long run of it, with sequences that differ from run to run.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from helpers import need_kernels, params_of
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test
from user_actions import Machine, Memory, Options

from fusedoptim.step import FusedStep

EXAMPLES = int(os.environ.get("FUSEDOPTIM_EXAMPLES", "0"))


def is_expanded(x: torch.Tensor) -> bool:
    return any(size > 1 and stride == 0 for size, stride in zip(x.shape, x.stride(), strict=True))


class Users(Options, Memory, Machine):
    """All actions, and the steps."""

    def _mode_for(self, zero: str | None) -> str | None:
        """An expanded gradient is refused by ``to_zero``, unlike by torch: the README says so."""
        grads = [p.grad for p in params_of(self.all[0]) if p.grad is not None]
        return "to_none" if zero == "to_zero" and any(map(is_expanded, grads)) else zero

    @rule(zero=st.sampled_from([None, "to_zero", "to_none"]), count=st.integers(1, 3), closure=st.booleans())
    def step(self, zero: str | None, count: int, closure: bool) -> None:
        def work(optimizer: Any) -> None:
            arguments = (lambda: None,) if closure else ()
            if isinstance(optimizer, FusedStep):
                optimizer.step(*arguments, zero_grad=mode)
            else:
                optimizer.step(*arguments)
                if mode is not None:
                    optimizer.zero_grad(set_to_none=mode == "to_none")

        for _ in range(count):
            self.grads()
            mode = self._mode_for(zero)
            self.each(work, only_steps=True)
            self.each(work, only_steps=True)  # with the gradients as they are now

    @rule(
        zero=st.sampled_from([None, "to_zero", "to_none"]),
        scale=st.sampled_from([None, 3.0, 1024.0]),
        infinite=st.sampled_from([None, 0.0, 0.0, 1.0]),
    )
    def scaled_step(self, zero: str | None, scale: float | None, infinite: float | None) -> None:
        """As GradScaler leaves unscaling and skipping to a step; torch's for-loop has it done beforehand."""

        def work(optimizer: Any) -> None:
            if isinstance(optimizer, FusedStep):
                optimizer.grad_scale = None if scale is None else torch.tensor(scale)
                optimizer.found_inf = None if infinite is None else torch.tensor(infinite)
                try:
                    optimizer.step(zero_grad=mode)
                finally:
                    del optimizer.grad_scale, optimizer.found_inf
                return
            grads = [p.grad for p in params_of(optimizer) if p.grad is not None]
            if not infinite:
                scaled = grads if scale is not None else []
                if any(map(is_expanded, scaled)):
                    raise RuntimeError("elements of a gradient to be unscaled share memory")
                for grad in scaled:
                    grad.div_(scale)
                optimizer.step()
            if mode is not None:
                optimizer.zero_grad(set_to_none=mode == "to_none")

        self.grads()
        mode = self._mode_for(zero)
        self.each(work, only_steps=True)

    @rule(set_to_none=st.booleans())
    def zero_grad(self, set_to_none: bool) -> None:
        self.each(lambda o: o.zero_grad(set_to_none))


@need_kernels
@pytest.mark.timeout(0 if EXAMPLES else 600)
def test_random_sequences() -> None:
    random = bool(EXAMPLES)
    run_state_machine_as_test(
        Users,
        settings=settings(
            max_examples=EXAMPLES or 40, stateful_step_count=25, deadline=None, database=None, derandomize=not random,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink] if random else [Phase.generate],
        ),
    )  # fmt: skip
