"""Random sequences of what users do, on the kernels, on the reference and on torch.optim, compared after each.

``FUSEDOPTIM_EXAMPLES=2000`` makes a long run of it, with sequences that differ from run to run.
"""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_optimizers_match, need_kernels, params_of, randn
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from torch.nn import Parameter

import fusedoptim
from fusedoptim import native

EXAMPLES = int(os.environ.get("FUSEDOPTIM_EXAMPLES", "0"))
SHAPES = [(4, 33), (), (7,), (0,), (3, 64)]
OPTIONS = {
    "lr": [0.0, 0.01, 0.3], "weight_decay": [0, 0.02], "maximize": [True, False], "momentum": [0, 0.5, 0.9],
    "dampening": [0, 0.3], "betas": [(0.9, 0.999), (0.3, 0.7)], "eps": [1e-8, 1e-3], "amsgrad": [True, False],
}  # fmt: skip


def outcome(work: Callable[[], Any]) -> Any:
    try:
        work()
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        return type(error)
    return None


class Users(RuleBasedStateMachine):
    """Three optimizers to which the same is done: the kernels', the reference's, torch's."""

    @initialize(name=st.sampled_from(["SGD", "Adam", "AdamW"]), dtype=st.sampled_from([torch.float32, torch.float64]))
    def make(self, name: str, dtype: torch.dtype) -> None:
        self.seed = 0
        self.dtype = dtype
        options = [{}, {}, {"foreach": False, "fused": False}]
        classes = [getattr(fusedoptim, name), getattr(fusedoptim, name), getattr(torch.optim, name)]
        self.all: list[Any] = [c(self._params(), lr=0.01, **o) for c, o in zip(classes, options, strict=True)]
        self._grads()

    def _params(self) -> list[Parameter]:
        return [Parameter(randn(shape, i, self.dtype)) for i, shape in enumerate(SHAPES)]

    def _grads(self) -> None:
        self.seed += 1
        for optimizer in self.all:
            for i, p in enumerate(params_of(optimizer)):
                if p.requires_grad:
                    p.grad = randn(p.shape, 100 * self.seed + i, p.dtype)

    def _each(self, change: Callable[[Any], Any]) -> None:
        """To all three, on its own backend; all raise, or none."""
        outcomes = []
        for optimizer, backend in zip(self.all, ["native", "reference", "native"], strict=True):
            with fusedoptim.set_backend(backend):
                outcomes.append(outcome(lambda: change(optimizer)))  # noqa: B023
        assert outcomes[0] == outcomes[1], outcomes
        assert (outcomes[0] is None) == (outcomes[2] is None), outcomes
        native_one, reference_one, theirs = self.all
        assert_optimizers_match(native_one, reference_one, exact=True)
        if outcomes[0] is not None:  # torch has then taken a part of the step
            self._sync()
        assert_optimizers_match(native_one, theirs)
        self._sync()

    def _sync(self) -> None:
        """Small differences in Adam's last bits must not add up."""
        ours, _, theirs = self.all
        with torch.no_grad():
            for p, q in zip(params_of(ours), params_of(theirs), strict=True):
                q.copy_(p)
                for key, value in (ours.state.get(p) or {}).items():
                    if key in theirs.state[q]:
                        theirs.state[q][key].copy_(value)

    @rule(zero=st.sampled_from([None, "to_zero", "to_none"]), count=st.integers(1, 3), closure=st.booleans())
    def step(self, zero: str | None, count: int, closure: bool) -> None:
        def work(optimizer: Any) -> None:
            arguments = (lambda: None,) if closure else ()
            if isinstance(optimizer, fusedoptim.step.FusedStep):
                optimizer.step(*arguments, zero_grad=zero)
            else:
                optimizer.step(*arguments)
                if zero is not None:
                    optimizer.zero_grad(set_to_none=zero == "to_none")

        for _ in range(count):
            self._grads()
            grads = [p.grad for p in params_of(self.all[0]) if p.grad is not None]
            if zero == "to_zero" and any(0 in g.stride() for g in grads):
                zero = "to_none"  # refused here, unlike by torch: the README says so
            self._each(work)
            self._each(work)  # with the gradients as they are now

    @rule(set_to_none=st.booleans())
    def zero_grad(self, set_to_none: bool) -> None:
        self._each(lambda o: o.zero_grad(set_to_none))

    @rule(data=st.data(), key=st.sampled_from(sorted(OPTIONS)))
    def option(self, data: Any, key: str) -> None:
        value = data.draw(st.sampled_from(OPTIONS[key]))
        if all(key in o.param_groups[-1] for o in self.all):
            self._each(lambda o: o.param_groups[-1].update({key: value}))

    @rule(factor=st.sampled_from([0.5, 2.0]))
    def tensor_lr_in_place(self, factor: float) -> None:
        def work(o: Any) -> None:
            group = o.param_groups[0]
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float64) * factor  # torch computes in its dtype

        self._each(work)

    @rule(shape=st.sampled_from(SHAPES))
    def add_group(self, shape: tuple[int, ...]) -> None:
        if len(self.all[0].param_groups) < 4:
            self._each(lambda o: o.add_param_group({"params": [Parameter(randn(shape, self.seed, self.dtype))]}))

    @rule(i=st.integers(0, 9), how=st.sampled_from(["freeze", "no grad", "zero grad", "expanded grad", "strided grad"]))
    def gradient(self, i: int, how: str) -> None:
        def work(o: Any) -> None:
            p = params_of(o)[i % len(params_of(o))]
            if how == "freeze":
                p.requires_grad_(not p.requires_grad)
            elif how == "strided grad" and p.grad is not None:
                p.grad = torch.stack([p.grad, p.grad], -1)[..., 0]
            else:
                p.grad = {"no grad": None, "zero grad": torch.zeros_like(p)}.get(
                    how, torch.ones_like(p[..., :1]).expand(p.shape) if p.dim() else None
                )
            o.step()

        self._each(work)

    @rule(i=st.integers(0, 9), how=st.sampled_from(["data", "transposed", "flat buffer", "tied"]))
    def memory(self, i: int, how: str) -> None:
        def work(o: Any) -> None:
            params = params_of(o)
            p = params[i % len(params)]
            if how == "data":
                p.data = p.data * 2
            elif how == "transposed" and p.dim() == 2:
                p.data = p.data.t().contiguous().t()
            elif how == "flat buffer":
                flat = torch.cat([x.detach().flatten() for x in params])
                for x, part in zip(params, flat.split([x.numel() for x in params]), strict=True):
                    x.data = part.view(x.shape)
            elif how == "tied":
                params[2].data = params[0].data.flatten()[:7] if params[0].data.is_contiguous() else params[2].data

        self._each(work)

    @rule(i=st.integers(0, 9), how=st.sampled_from(["clone", "pop", "empty", "clear"]))
    def state(self, i: int, how: str) -> None:
        def work(o: Any) -> None:
            own = o.state.get(params_of(o)[i % len(params_of(o))]) or {}
            if how == "clone":
                own.update({key: value.clone() for key, value in own.items()})
            elif how == "pop":
                o.state.pop(params_of(o)[i % len(params_of(o))], None)
            elif how == "empty":
                own.clear()
            else:
                o.state.clear()

        self._each(work)

    @rule(how=st.sampled_from(["own", "exchange", "deepcopy", "pickle"]))
    def save(self, how: str) -> None:
        if how == "own":
            self._each(lambda o: o.load_state_dict(copy.deepcopy(o.state_dict())))
        elif how == "exchange":
            ours, theirs = (copy.deepcopy(self.all[k].state_dict()) for k in (0, 2))
            self._each(lambda o: o.load_state_dict(copy.deepcopy(ours if o is self.all[2] else theirs)))
            for group in self.all[2].param_groups:
                group.update(foreach=False, fused=False)
        else:
            make = copy.deepcopy if how == "deepcopy" else lambda o: pickle.loads(pickle.dumps(o))
            grads = [[p.grad for p in params_of(o)] for o in self.all]
            self.all = [make(o) for o in self.all]
            for o, own in zip(self.all, grads, strict=True):
                for p, grad in zip(params_of(o), own, strict=True):
                    p.grad = grad

    @rule(threads=st.sampled_from([1, 2]), instruction_set=st.integers(0, 2))
    def machine(self, threads: int, instruction_set: int) -> None:
        torch.set_num_threads(threads)
        supported = fusedoptim.build_info()["instruction_sets_supported"]
        native.set_instruction_set(supported[instruction_set % len(supported)])


@need_kernels
@pytest.mark.timeout(0 if EXAMPLES else 600)
def test_random_sequences() -> None:
    random = bool(EXAMPLES)
    run_state_machine_as_test(
        Users,
        settings=settings(
            max_examples=EXAMPLES or 25, stateful_step_count=20, deadline=None, database=None, derandomize=not random,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink] if random else [Phase.generate],
        ),
    )  # fmt: skip
