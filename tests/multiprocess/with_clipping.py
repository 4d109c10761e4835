"""Clipping by a norm that is over all processes: FSDP2, tensor parallelism, scalers, DDP and ZeRO."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from exact_models import OPTIMIZERS, PER_RANK, Exact, assert_same_bits, data, make, share, whole
from ranks import Rank, scenario
from torch.nn.parallel import DistributedDataParallel
from with_fsdp import sharded, train
from with_shards import parallel

import fusedoptim

LIMIT = 2.0
STEPS = range(2)
WAYS = ("at once", "in the next step", "in every step")


@contextmanager
def collectives(expected: int) -> Generator[None]:
    """How many there are in a block, by whomever; over all operations of the reference a profiler takes seconds."""
    if fusedoptim.get_backend() == "reference":
        yield
        return
    with torch.autograd.profiler.profile() as profile:
        yield
    names = [event.name for event in profile.function_events if event.name.startswith("c10d::")]
    assert names == ["c10d::allreduce_"] * expected


def clipped_step(way: str, model: Any, optimizer: Any) -> float:
    """Take a step, and return the norm."""
    norm = None
    if way == "at once":
        norm = fusedoptim.clip_grad_norm_(model.parameters(), LIMIT)
    elif way == "in the next step":
        norm = optimizer.clip_grad_norm_(LIMIT)
    optimizer.step()
    norm = optimizer.grad_norm if norm is None else norm
    optimizer.zero_grad()
    return float(norm)


def clipped_alone(kind: str, samples: int, steps: Any = STEPS) -> tuple[Exact, Any, list[float]]:
    """The training in a single process, with the norms."""
    model = Exact()
    optimizer = make(kind, model.parameters(), max_grad_norm=LIMIT)
    norms = []
    for step in steps:
        model(data(step, samples)).backward()
        norms.append(clipped_step("in every step", model, optimizer))
    assert min(norms) > LIMIT
    return model, optimizer, norms


def of_every_way(
    kind: str, samples: int, backward: Callable[[Any, int], Any], build: Callable[[], Any], asks: int
) -> None:
    """Train in each way, and compare all bits with a single process; ``asks``: collectives of a step."""
    single, other, wanted = clipped_alone(kind, samples)
    for way in WAYS:
        model = build()
        optimizer = make(kind, model.parameters(), **({"max_grad_norm": LIMIT} if way == "in every step" else {}))
        for step in STEPS:
            backward(model, step)
            with collectives(asks):
                norm = clipped_step(way, model, optimizer)
            assert norm == wanted[step], way
        assert_same_bits(model, single, optimizer, other)


@scenario("two", "four")
def fsdp_clips(own: Rank) -> None:
    """Uneven and empty shards, float32 and what mixed precision and offloading leave of it."""
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    engines: list[dict[str, Any]] = [{}]
    if own.world == 2:
        engines += [{"mp_policy": half}, {"offload_policy": CPUOffloadPolicy(pin_memory=False)}]
    for engine in engines:
        of_every_way(
            "AdamW",
            PER_RANK * own.world,
            lambda model, step: model(share(step, own.rank, own.world)).backward(),
            lambda engine=engine: sharded(own, **engine),  # type: ignore[misc]
            1,
        )


@scenario("two", "four")
def tensor_parallel_clips(own: Rank) -> None:
    """DTensors beside plain tensors; with four processes, on a mesh of two dimensions beside those on one of these."""
    copies = own.world // 2
    rows = slice(own.rank // 2 * PER_RANK, (own.rank // 2 + 1) * PER_RANK)
    of_every_way(
        "momentum",
        PER_RANK * copies,
        lambda model, step: model(data(step, PER_RANK * copies)[rows]).backward(),
        lambda: parallel(own),
        1 if own.world == 2 else 3,
    )


@scenario("two")
def fsdp_clips_at_once(own: Rank) -> None:
    """Gradients that need it are written, with the version counters that torch raises, and no others."""
    model = sharded(own)
    model(share(0, own.rank, own.world)).backward()
    grads: list[Any] = [p.grad for p in model.parameters()]
    before = [whole(grad).clone() for grad in grads]
    versions = [(grad._version, grad._local_tensor._version) for grad in grads]
    theirs = torch.nn.utils.get_total_norm(grads)
    for limit in (1e9, LIMIT):
        ours: Any = fusedoptim.clip_grad_norm_(model.parameters(), limit)
        torch.testing.assert_close(ours.full_tensor(), theirs.full_tensor())  # type: ignore[attr-defined]
        assert (type(ours), ours.device_mesh, ours.dtype) == (type(theirs), theirs.device_mesh, theirs.dtype)  # type: ignore[attr-defined]
        assert ours.item() == ours.full_tensor().item()
        if limit > LIMIT:
            assert [(grad._version, grad._local_tensor._version) for grad in grads] == versions
    for grad, was, version in zip(grads, before, versions, strict=True):
        assert grad._version > version[0]
        assert grad.numel() == 0 or grad.to_local().numel() == 0 or grad._local_tensor._version > version[1]
        torch.testing.assert_close(whole(grad), was * (LIMIT / ours.item()))


@scenario("two")
def fsdp_clips_what_was_measured(own: Rank) -> None:
    """A gradient that was written since is noticed, in the DTensor and in what lies here of it."""

    def replace(p: Any) -> None:
        p.grad = p.grad * 2

    writes = [lambda p: p.grad.mul_(2), lambda p: p.grad.to_local().mul_(2), replace]
    for write in writes:
        model, other = sharded(own), sharded(own)
        optimizers = [make("SGD", each.parameters()) for each in (model, other)]
        for each in (model, other):
            each(share(0, own.rank, own.world)).backward()
        optimizers[0].clip_grad_norm_(LIMIT)
        for each in (model, other):
            write(next(each.parameters()))
        with pytest.warns(UserWarning, match="this step does not clip"):
            optimizers[0].step()
        optimizers[1].step()
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(p.to_local(), q.to_local())


@scenario("two")
def fsdp_skips_in_all_processes(own: Rank) -> None:
    """Infinity or NaN in the shard of one process; also as the scalers find it, who divide before or in the step."""
    scalers: list[Any] = [None, torch.amp.GradScaler, fusedoptim.GradScaler]
    single, other, _ = clipped_alone("AdamW", PER_RANK * own.world)
    for scaler_class in scalers:
        for fused in (None, True):
            model = sharded(own)
            optimizer = make("AdamW", model.parameters(), fused=fused, max_grad_norm=LIMIT, skip_nonfinite=True)
            scaler = None if scaler_class is None else scaler_class("cpu", init_scale=8.0)
            for step, bad in ((0, None), (7, math.inf), (8, math.nan), (1, None)):
                loss = model(share(step, own.rank, own.world))
                (loss if scaler is None else scaler.scale(loss)).backward()
                if bad is not None and own.rank == 1:
                    shard = next(p.grad for p in model.parameters() if p.to_local().numel() > 0)
                    shard.to_local().view(-1)[0] = bad
                if scaler is None:
                    optimizer.step()
                else:
                    scaler.step(optimizer)
                    scaler.update()
                optimizer.zero_grad()
            assert optimizer.skipped_steps == (2 if scaler is None else 0)
            assert scaler is None or scaler.get_scale() == 2.0
            del optimizer.param_groups[0]["fused"]
            assert_same_bits(model, single, optimizer, other)


@scenario("two")
def fsdp_verified_with_clipping(own: Rank) -> None:
    """And with averages, which are cut as the parameters are."""
    model = sharded(own)
    optimizer = make("AdamW", model.parameters(), max_grad_norm=LIMIT, skip_nonfinite=True, ema_decay=0.5)
    with fusedoptim.verify(optimizer, params=100) as found:
        train(own, model, optimizer, STEPS)
        model(share(2, own.rank, own.world)).backward()
        optimizer.clip_grad_norm_(LIMIT / 2)
        optimizer.step()
    here = sum(p.to_local().numel() > 0 for p in model.parameters())
    assert (found.differences, found.skipped, found.steps, found.checked) == ([], {}, 3, 3 * here)


@scenario("two")
def ddp_clips(own: Rank) -> None:
    """Each process has all gradients: nobody is asked."""
    of_every_way(
        "AdamW",
        PER_RANK * own.world,
        lambda model, step: model(share(step, own.rank, own.world)).backward(),
        lambda: DistributedDataParallel(Exact()),
        0,
    )


@scenario("two")
def zero_redundancy_clips(own: Rank) -> None:
    """By the norm of all gradients, before the step; the optimizer itself knows a part."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    name, options = OPTIMIZERS["AdamW"]
    which = getattr(fusedoptim, name)
    model = DistributedDataParallel(Exact())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=which, **options)
    single, _, wanted = clipped_alone("AdamW", PER_RANK * own.world)
    for step in STEPS:
        model(share(step, own.rank, own.world)).backward()
        with collectives(0):
            norm = fusedoptim.clip_grad_norm_(model.parameters(), LIMIT)
        assert norm == wanted[step]
        optimizer.step()
        optimizer.zero_grad()
    assert_same_bits(model.module, single)
    for setting, cure in (({"max_grad_norm": 0.5}, r"parameters\(\), 0.5\)"), ({"skip_nonfinite": True}, "is finite")):
        with pytest.raises(ValueError, match=f"{next(iter(setting))}=.* group 0: within Zero.*{cure}"):
            ZeroRedundancyOptimizer(model.parameters(), optimizer_class=which, lr=0.1, **setting)
    optimizer.param_groups[0]["max_grad_norm"] = LIMIT
    model(share(0, own.rank, own.world)).backward()
    with pytest.raises(ValueError, match="within ZeroRedundancyOptimizer"):
        optimizer.step()
    assert_same_bits(model.module, single)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make("AdamW", model.parameters(), max_grad_norm=LIMIT).step()  # beside it, and not within
