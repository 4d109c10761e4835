"""FSDP1 (``FullyShardedDataParallel``): the optimizer sees plain tensors, in each process its part of flat ones."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from exact_models import OPTIMIZERS, PER_RANK, Exact, alone, assert_same_bits, data, make, share
from ranks import Rank, scenario
from torch import nn

import fusedoptim

STEPS = range(3)


def _fsdp() -> Any:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel


def _sharded(use_orig_params: bool) -> Any:
    """One flat parameter of a layer's, and one of all others; or views of both, with ``use_orig_params``.

    ``offload_to_cpu`` copies nothing on a CPU: torch 2.13 then gathers the next state over the one before.
    """
    from torch.distributed.fsdp import FullOptimStateDictConfig, FullStateDictConfig, StateDictType

    model: Any = Exact()
    wrap = {"device_id": torch.device("cpu"), "use_orig_params": use_orig_params}
    model.layers[0] = _fsdp()(model.layers[0], **wrap)
    model = _fsdp()(model, **wrap)
    whole = (StateDictType.FULL_STATE_DICT, FullStateDictConfig(), FullOptimStateDictConfig(offload_to_cpu=False))
    _fsdp().set_state_dict_type(model, *whole)
    return model


def _train(own: Rank, model: Any, optimizer: Any, steps: Any = STEPS) -> None:
    for step in steps:
        model(share(step, own.rank, own.world)).backward()
        optimizer.step(zero_grad="to_none")


def _assert_whole(model: Any, optimizer: Any, single: nn.Module, other: Any, exact: bool) -> None:
    """Parameters and state are those of a training in one process; ``exact``: bit for bit.

    Else by as much as two implementations of Adam round otherwise: a few units of 2^-24 of each number, and of lr.
    """
    tolerance = {"rtol": 0.0 if exact else 1e-6, "atol": 0.0 if exact else 1e-7}
    names = [name for name, _ in single.named_parameters()]
    with _fsdp().summon_full_params(model):
        for name, p, q in zip(names, model.parameters(), single.parameters(), strict=True):
            torch.testing.assert_close(p.detach(), q.detach(), **tolerance, msg=name)
    gathered = _fsdp().optim_state_dict(model, optimizer)["state"]
    for name, q in single.named_parameters():
        wanted = {key: value for key, value in other.state[q].items() if value is not None}
        assert set(gathered.get(name, {})) == set(wanted), name
        for key, value in wanted.items():
            torch.testing.assert_close(gathered[name][key], value, **tolerance)


@scenario("two")
def fsdp1(own: Rank) -> None:
    """As torch's for-loop in one process: SGD to the bit."""
    warnings.simplefilter("ignore")  # torch's own, on deprecated collectives
    for kind in OPTIMIZERS:
        for use_orig_params in (True, False):
            model = _sharded(use_orig_params)
            optimizer = make(kind, model.parameters(), fused=True)
            _train(own, model, optimizer)
            single, other = alone(kind, own.world, STEPS, module=torch.optim, foreach=False)
            _assert_whole(model, optimizer, single, other, exact=OPTIMIZERS[kind][0] == "SGD")


@scenario("two")
def fsdp1_state_dict(own: Rank) -> None:
    """Saved by name, loaded by a model that is cut otherwise: training goes on as if it had not stopped."""
    for kind in ("momentum", "Adam"):
        for before in (True, False):
            old, new = _sharded(before), _sharded(not before)
            optimizer, other = (make(kind, model.parameters()) for model in (old, new))
            _train(own, old, optimizer)
            new.load_state_dict(old.state_dict())
            saved = _fsdp().optim_state_dict(old, optimizer)
            other.load_state_dict(_fsdp().optim_state_dict_to_load(new, other, saved))
            _train(own, new, other, range(3, 5))
            _assert_whole(new, other, *alone(kind, own.world, range(5)), exact=True)


@scenario("two")
def fsdp1_clips_by_itself(own: Rank) -> None:
    """An optimizer would know the norm of what lies in its process, so it says who knows the norm of all."""
    for use_orig_params in (True, False):
        model = _sharded(use_orig_params)
        cure = r"with FullyShardedDataParallel each process.*model\.clip_grad_norm_\("
        for setting in ({"max_grad_norm": 2.0}, {"skip_nonfinite": True}):
            with pytest.raises(ValueError, match=cure):
                make("momentum", model.parameters(), **setting)
        optimizer = make("momentum", model.parameters())
        with pytest.raises(ValueError, match=cure):
            optimizer.clip_grad_norm_(2.0)
        single = Exact()
        other = make("momentum", single.parameters(), max_grad_norm=2.0)
        for step in STEPS:
            model(share(step, own.rank, own.world)).backward()
            single(data(step, PER_RANK * own.world)).backward()
            model.clip_grad_norm_(2.0)
            optimizer.step(zero_grad="to_none")
            other.step(zero_grad="to_none")
        _assert_whole(model, optimizer, single, other, exact=False)


@scenario("two")
def fsdp1_grad_scaler(own: Rank) -> None:
    """An overflow in the shard of one process: all skip the step, and lower the scale.

    So it is where the scaler unscales: by itself, or, with ``fused=True``, because it was told to before the step.
    """
    import torch.distributed as dist
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    for fused, unscale in ((None, False), (None, True), (True, True)):
        model = _sharded(use_orig_params=True)
        optimizer = make("AdamW", model.parameters(), fused=fused)
        scaler = ShardedGradScaler("cpu", init_scale=8.0, process_group=dist.group.WORLD)
        for step, overflow in ((0, False), (7, True), (1, False), (2, False)):
            scaler.scale(model(share(step, own.rank, own.world))).backward()
            if overflow and own.rank == 1:
                next(p.grad for p in model.parameters() if p.grad is not None and p.numel() > 0).view(-1)[0] = torch.inf
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert scaler.get_scale() == 4.0
        _assert_whole(model, optimizer, *alone("AdamW", own.world, STEPS), exact=True)


@scenario("two")
def fsdp2_grad_scaler(own: Rank) -> None:
    """The same under FSDP2, where torch's plain scaler asks all processes."""
    from with_fsdp import sharded

    for fused in (None, True):
        model = sharded(own)
        optimizer = make("AdamW", model.parameters(), fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step, overflow in ((0, False), (7, True), (1, False), (2, False)):
            scaler.scale(model(share(step, own.rank, own.world))).backward()
            if overflow and own.rank == 1:
                next(p.grad for p in model.parameters() if p.to_local().numel() > 0).to_local().view(-1)[0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert scaler.get_scale() == 4.0
        single, other = alone("AdamW", own.world, STEPS)
        assert_same_bits(model, single, optimizer, other)


@scenario("two")
def optimizers_in_backward(own: Rank) -> None:
    """One optimizer for each parameter, stepped by FSDP as soon as the gradient of all processes is there.

    FSDP1 knows those of ``_apply_optimizer_in_backward``, FSDP2 the hooks of its parameters.
    """
    from torch.distributed.optim import _apply_optimizer_in_backward
    from with_fsdp import sharded

    name, options = OPTIMIZERS["AdamW"]
    single = Exact()
    _apply_optimizer_in_backward(getattr(fusedoptim, name), single.parameters(), options)
    flat = _fsdp()(single, device_id=torch.device("cpu"), use_orig_params=True)
    model = sharded(own)
    optimizers = {p: make("AdamW", [p]) for p in model.parameters()}
    for p in optimizers:
        p.register_post_accumulate_grad_hook(lambda p: optimizers[p].step(zero_grad="to_none"))
    for step in STEPS:
        for trained in (flat, model):
            trained(share(step, own.rank, own.world)).backward()
            assert all(p.grad is None for p in trained.parameters())
    wanted = alone("AdamW", own.world, STEPS)[0]
    assert_same_bits(model, wanted)
    with _fsdp().summon_full_params(flat):
        assert_same_bits(flat, wanted)
