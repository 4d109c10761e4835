"""What users do between steps, as rules of a state machine."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from helpers import params_of, randn
from hypothesis import strategies as st
from hypothesis.stateful import rule
from torch import Tensor
from torch.nn import Parameter
from user_machine import DTYPES, SHAPES, ThreeOptimizers

import fusedoptim
from fusedoptim import native

OPTIONS = {
    "lr": [0.0, 0.01, 0.3], "weight_decay": [0, 0.02], "maximize": [True, False], "momentum": [0, 0.5, 0.9],
    "dampening": [0, 0.3], "nesterov": [True, False], "betas": [(0.9, 0.999), (0.3, 0.7)], "eps": [1e-8, 1e-3],
    "amsgrad": [True, False],
}  # fmt: skip


def other_layout(x: Tensor, how: str) -> Tensor:
    """The same values elsewhere in memory."""
    if how == "transposed":
        return x.t().contiguous().t() if x.dim() == 2 else x
    if how == "strided":
        return torch.stack([x, x], -1)[..., 0]
    return torch.cat([x.flatten()[:1], x.flatten()])[min(1, x.numel()) :].view(x.shape)  # "shifted" by one element


def lacks_state(optimizer: Any) -> bool:
    """Whether amsgrad was switched on when there was state: torch loads that, and its next step raises."""
    amsgrad = [p for group in optimizer.param_groups if group.get("amsgrad") for p in group["params"]]
    return any("max_exp_avg_sq" not in optimizer.state[p] for p in amsgrad if optimizer.state.get(p))


class Options(ThreeOptimizers):
    """Changes of hyper-parameters and groups."""

    @rule(data=st.data(), key=st.sampled_from(sorted(OPTIONS)))
    def option(self, data: Any, key: str) -> None:
        value = data.draw(st.sampled_from(OPTIONS[key]))
        if all(key in o.param_groups[-1] for o in self.all):
            self.each(lambda o: o.param_groups[-1].update({key: value}))

    @rule(factor=st.sampled_from([0.5, 2.0]), in_place=st.booleans())
    def tensor_lr(self, factor: float, in_place: bool) -> None:
        def work(o: Any) -> None:
            lr = o.param_groups[0]["lr"]
            if in_place and isinstance(lr, Tensor):
                lr.mul_(factor)  # also that of other groups, where they share it
            else:  # float64, for torch computes in its dtype
                o.param_groups[0]["lr"] = torch.as_tensor(lr, dtype=torch.float64) * factor
            o.step()

        self.grads()
        self.each(work)

    @rule(shape=st.sampled_from(SHAPES))
    def add_group(self, shape: tuple[int, ...]) -> None:
        if len(self.all[0].param_groups) < 4:
            self.each(lambda o: o.add_param_group({"params": [Parameter(randn(shape, self.seed, self.dtype))]}))

    @rule(gamma=st.sampled_from([0.5, 1.5]), every=st.integers(1, 2))
    def attach_scheduler(self, gamma: float, every: int) -> None:
        def work(o: Any) -> None:
            self.schedulers.append(fusedoptim.lr_scheduler.StepLR(o, every, gamma))

        self.schedulers = []
        self.each(work)
        self.schedulers = self.schedulers if len(self.schedulers) == 3 else []

    @rule(step_before=st.sampled_from([True, True, False]))
    def scheduler(self, step_before: bool) -> None:
        """Without a step since it was attached it warns."""

        def work(o: Any) -> None:
            if step_before:
                o.step()
            of_o = [scheduler for scheduler in self.schedulers if scheduler.optimizer is o]
            for scheduler in of_o:
                scheduler.step()

        self.each(work)
        lrs = [[float(group["lr"]) for group in o.param_groups] for o in self.all]
        assert lrs[0] == lrs[1] == lrs[2]


class Memory(ThreeOptimizers):
    """Changes of gradients, parameters and state, and where they lie."""

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

        self.each(work)

    @rule(i=st.integers(0, 9), how=st.sampled_from(["data", "transposed", "flat buffer", "tied"]))
    def memory(self, i: int, how: str) -> None:
        def work(o: Any) -> None:
            params = params_of(o)
            p = params[i % len(params)]
            if how == "data":
                p.data = p.data * 2
            elif how == "transposed":
                p.data = other_layout(p.data, how)
            elif how == "flat buffer":
                flat = torch.cat([x.detach().flatten() for x in params])
                for x, part in zip(params, flat.split([x.numel() for x in params]), strict=True):
                    x.data = part.view(x.shape)
            elif how == "tied":
                params[2].data = params[0].data.flatten()[:7] if params[0].data.is_contiguous() else params[2].data

        self.each(work)

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

        self.each(work)

    @rule(i=st.integers(0, 9), k=st.integers(0, 2), how=st.sampled_from(["transposed", "strided", "shifted"]))
    def state_layout(self, i: int, k: int, how: str) -> None:
        def work(o: Any) -> None:
            own = o.state.get(params_of(o)[i % len(params_of(o))]) or {}
            keys = sorted(set(own) - {"step"})
            if keys:
                own[keys[k % len(keys)]] = other_layout(own[keys[k % len(keys)]], how)
            o.step()

        self.grads()
        self.each(work)

    @rule(dtype=st.sampled_from(DTYPES))
    def move(self, dtype: torch.dtype) -> None:
        """The model goes to another dtype, gradients and state with it, which ours does not take along by itself."""
        if lacks_state(self.all[0]):
            return

        def work(o: Any) -> None:
            torch.nn.ParameterList(params_of(o)).to(dtype)
            o.load_state_dict(copy.deepcopy(o.state_dict()))
            for entry in o.state.values():
                entry.update({key: x.to(dtype) for key, x in entry.items() if key != "step" and x is not None})

        self.dtype = dtype
        self.each(work)
        for group in self.all[2].param_groups:
            group.update(foreach=False, fused=False)

    @rule(how=st.sampled_from(["own", "exchange", "deepcopy", "pickle"]))
    def save(self, how: str) -> None:
        if how in ("own", "exchange") and lacks_state(self.all[0]):
            for o in self.all[:2]:
                with pytest.raises(ValueError, match="max_exp_avg_sq"):
                    o.load_state_dict(copy.deepcopy(o.state_dict()))
            self.each(lambda o: None)
        elif how == "own":
            self.each(lambda o: o.load_state_dict(copy.deepcopy(o.state_dict())))
        elif how == "exchange":
            ours, theirs = (copy.deepcopy(self.all[k].state_dict()) for k in (0, 2))
            self.each(lambda o: o.load_state_dict(copy.deepcopy(ours if o is self.all[2] else theirs)))
            for group in self.all[2].param_groups:
                group.update(foreach=False, fused=False)
        else:
            make = copy.deepcopy if how == "deepcopy" else lambda o: pickle.loads(pickle.dumps(o))
            grads = [[p.grad for p in params_of(o)] for o in self.all]
            self.all = [make(o) for o in self.all]
            self.schedulers = []  # they are the old ones'
            for o, own in zip(self.all, grads, strict=True):
                for p, grad in zip(params_of(o), own, strict=True):
                    p.grad = grad


class Machine(ThreeOptimizers):
    """Changes of what the steps run on."""

    @rule(threads=st.sampled_from([1, 2]), instruction_set=st.integers(0, 2))
    def machine(self, threads: int, instruction_set: int) -> None:
        torch.set_num_threads(threads)
        supported = fusedoptim.build_info()["instruction_sets_supported"]
        native.set_instruction_set(supported[instruction_set % len(supported)])

    @rule()
    def backends_exchanged(self) -> None:
        self.backends.reverse()
        self.grads()
        self.each(lambda o: o.step())
