"""torch.distributed.checkpoint: saved by two processes, loaded by four, saved by these and loaded by two again."""

from __future__ import annotations

from typing import Any

import torch
from exact_models import OPTIMIZERS, alone, assert_same_bits, data, make, whole
from ranks import Rank, scenario
from with_fsdp import sharded

KINDS = [kind for kind in OPTIMIZERS if kind != "SGD"]  # that keep state
LAST = {"two": 2, "four": 4, "two-again": 6}  # steps taken by the end of a phase
MORE: dict[str, dict[str, Any]] = {"Adam": {"ema_decay": 0.5}, "AdamW": {"max_grad_norm": 2.0}}
SAMPLES = 8  # of a step, however many processes there are


def _train(own: Rank, model: Any, optimizer: Any, steps: range) -> None:
    each = SAMPLES // own.world
    for step in steps:
        model(data(step, SAMPLES)[own.rank * each : (own.rank + 1) * each]).backward()
        optimizer.step(zero_grad="to_none")


def _alone(kind: str, last: int) -> tuple[Any, Any]:
    return alone(kind, 2, range(last), **MORE.get(kind, {}))  # 2 times 4 samples


@scenario("two", "four", "two-again")
def checkpoints(own: Rank) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    first = LAST[own.phase] - 2
    for kind in KINDS:
        model = sharded(own)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1 if first == 0 else 17)  # what is loaded must overwrite it
        optimizer = make(kind, model.parameters(), fused=own.phase != "four" or None, **MORE.get(kind, {}))
        if first > 0:
            weights, state = get_state_dict(model, optimizer)
            saved = {"model": weights, "optimizer": state}
            dcp.load(saved, checkpoint_id=own.folder / f"{own.backend}-{kind}-{first}")
            set_state_dict(model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
            assert_same_bits(model, *_pair(_alone(kind, first), optimizer))
        _train(own, model, optimizer, range(first, first + 2))
        assert_same_bits(model, *_pair(_alone(kind, first + 2), optimizer))
        weights, state = get_state_dict(model, optimizer)
        target = own.folder / f"{own.backend}-{kind}-{first + 2}"
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=target)


def _pair(single: tuple[Any, Any], optimizer: Any) -> tuple[Any, Any, Any]:
    return single[0], optimizer, single[1]


@scenario("two", "four")
def first_state_moves_nothing(own: Rank) -> None:
    """To have state that can be loaded into, torch takes a step with gradients of 0 and lr=0."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    for kind in KINDS:
        for lr in (0.1, torch.tensor(0.1)):
            model = sharded(own)
            optimizer = make(kind, model.parameters(), lr=lr)
            before = [p.to_local().clone() for p in model.parameters()]
            get_optimizer_state_dict(model, optimizer)
            for p, old in zip(model.parameters(), before, strict=True):
                now = p.to_local()
                assert now.view(torch.int32).tolist() == old.view(torch.int32).tolist()
                assert p.grad is None
                state = optimizer.state[p]
                keys = {"momentum": {"momentum_buffer"}, "Adam": {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"},
                        "AdamW": {"step", "exp_avg", "exp_avg_sq"}}  # fmt: skip
                assert set(state) == keys[kind]
                for name, entry in state.items():
                    assert name == "step" or (entry.placements == p.placements and entry.shape == p.shape)
            assert optimizer.param_groups[0]["lr"] is lr


@scenario("two", "four")
def whole_state_from_and_to_one_process(own: Rank) -> None:
    """Gathered into plain tensors, the state is what a single process has; from there it is cut again."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    for kind in KINDS:
        single, other = _alone(kind, 2)
        model = sharded(own)
        with torch.no_grad():
            for p, q in zip(model.parameters(), single.parameters(), strict=True):
                p.copy_(_like(q.detach(), p))
        optimizer = make(kind, model.parameters(), **MORE.get(kind, {}))
        gathered = StateDictOptions(full_state_dict=True)
        given = get_optimizer_state_dict(single, other, options=gathered)
        set_optimizer_state_dict(model, optimizer, given, options=gathered)
        assert_same_bits(model, single, optimizer, other)
        _train(own, model, optimizer, range(2, 4))
        assert_same_bits(model, *_pair(_alone(kind, 4), optimizer))
        back = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
        for name, p in model.named_parameters():
            for key, entry in optimizer.state[p].items():
                assert torch.equal(back["state"][name][key], whole(entry)), (name, key)


def _like(x: torch.Tensor, p: Any) -> Any:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x, p.device_mesh, p.placements, src_data_rank=None)
