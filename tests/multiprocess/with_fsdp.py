"""FSDP2 (``fully_shard``): parameters, gradients and state are DTensors, and each process updates its shards."""

from __future__ import annotations

from typing import Any

import torch
from exact_models import OPTIMIZERS, PER_RANK, Exact, alone, assert_same_bits, data, make, share, whole
from ranks import Rank, scenario
from torch import nn

import fusedoptim

STEPS = range(3)


def sharded(own: Rank, mesh: Any = None, **engine: Any) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = Exact()
    mesh = init_device_mesh("cpu", (own.world,)) if mesh is None else mesh
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, **engine)
    return fully_shard(model, mesh=mesh, **engine)


def train(own: Rank, model: nn.Module, optimizer: Any, steps: Any = STEPS, zero_grad: str | None = "to_none") -> None:
    for step in steps:
        model(share(step, own.rank, own.world)).backward()
        optimizer.step(zero_grad=zero_grad)
        if zero_grad is None:
            optimizer.zero_grad()


@scenario("two", "four")
def fsdp(own: Rank) -> None:
    from torch.distributed.tensor import DTensor

    for kind in OPTIMIZERS:
        for fused in (None, True):
            model = sharded(own)
            optimizer = make(kind, model.parameters(), fused=fused)
            train(own, model, optimizer, zero_grad=None)
            params = list(model.parameters())
            sizes = {p.to_local().shape[0] for p in params}
            assert all(isinstance(p, DTensor) for p in params)
            assert 1 in sizes if own.rank == 0 else 0 in sizes, "shards of unequal sizes, one of them empty"
            for p in params:
                for name, entry in optimizer.state[p].items() if kind != "SGD" else ():
                    assert isinstance(entry, DTensor) == (name != "step"), name
            wanted, other = alone(kind, own.world, STEPS, fused=fused)
            assert_same_bits(model, wanted, optimizer if kind != "SGD" else None, other)


@scenario("two", "four")
def fsdp_zeroes_gradients(own: Rank) -> None:
    """In the step, and by ``zero_grad``, with the version counters that torch raises."""
    model = sharded(own)
    optimizer = make("momentum", model.parameters())
    model(share(0, own.rank, own.world)).backward()
    params = list(model.parameters())
    versions = [(p._version, p.grad._version) for p in params]
    grads = [p.grad for p in params]
    optimizer.step(zero_grad="to_zero")
    assert [p.grad is grad for p, grad in zip(params, grads, strict=True)] == [True] * len(params)
    assert all(not p.grad.to_local().any() for p in params)
    assert all(p._version > a and p.grad._version > b for p, (a, b) in zip(params, versions, strict=True))
    for p in params:
        p.grad.to_local().fill_(3)
    versions = [(p._version, p.grad._version) for p in params]
    optimizer.zero_grad(set_to_none=False)
    assert all(not p.grad.to_local().any() for p in params)
    assert all(p._version == a and p.grad._version > b for p, (a, b) in zip(params, versions, strict=True))
    train(own, model, optimizer, range(1, 3), "to_zero")
    assert_same_bits(model, alone("momentum", own.world, STEPS)[0])
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


@scenario("two", "four")
def fsdp_verified(own: Rank) -> None:
    """Samples are of what lies in each process, where that is anything."""
    model = sharded(own)
    optimizer = make("AdamW", model.parameters())
    with fusedoptim.verify(optimizer, params=100) as found:
        train(own, model, optimizer)
    here = sum(p.to_local().numel() > 0 for p in model.parameters())
    assert (found.differences, found.skipped, found.steps, found.checked) == ([], {}, 3, 3 * here)


@scenario("two", "four")
def fsdp_mixed_precision(own: Rank) -> None:
    """Forward and backward in bfloat16; the optimizer sees float32. The gradients fit bfloat16 here."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    for reduce in (torch.float32, torch.bfloat16):
        model = sharded(own, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=reduce))
        optimizer = make("AdamW", model.parameters(), fused=True)
        train(own, model, optimizer)
        assert_same_bits(model, *_both(alone("AdamW", own.world, STEPS), optimizer))


def _both(single: Any, optimizer: Any) -> tuple[Any, Any, Any]:
    return single[0], optimizer, single[1]


@scenario("two", "four")
def fsdp_resharding(own: Rank) -> None:
    """Parameters that stay whole after the forward pass are cut again before the step, by FSDP or by the user."""
    model = sharded(own, reshard_after_forward=False)
    optimizer = make("Adam", model.parameters())
    for step in STEPS:
        model(share(step, own.rank, own.world)).backward()
        if step == 1:
            model.unshard()  # the optimizer holds the shards
            model.reshard()
        optimizer.step(zero_grad="to_none")
    assert_same_bits(model, *_both(alone("Adam", own.world, STEPS), optimizer))


@scenario("two", "four")
def fsdp_clipping(own: Rank) -> None:
    """The norm is summed over processes in another order, so it may differ in the last places.

    SGD's parameters then differ by lr times as much for each step.
    """
    model, single = sharded(own), Exact()
    optimizer, other = make("momentum", model.parameters()), make("momentum", single.parameters())
    for step in STEPS:
        model(share(step, own.rank, own.world)).backward()
        single(data(step, PER_RANK * own.world)).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        wanted = nn.utils.clip_grad_norm_(single.parameters(), 0.5)
        assert wanted > 0.5
        torch.testing.assert_close(whole(norm), wanted)
        optimizer.step(zero_grad="to_none")
        other.step(zero_grad="to_none")
    for p, q in zip(model.parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(whole(p), q.detach(), rtol=1e-6, atol=1e-7)


@scenario("four")
def hybrid_sharding(own: Rank) -> None:
    """Sharded over two processes, and two copies of that."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard

    model = sharded(own, init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards")))
    assert {p.placements for p in model.parameters()} == {(Replicate(), Shard(0))}
    optimizer = make("AdamW", model.parameters(), fused=True)
    train(own, model, optimizer)
    assert_same_bits(model, *_both(alone("AdamW", own.world, STEPS), optimizer))


@scenario("two", "four")
def fsdp_of_a_network(own: Rank) -> None:
    """A network whose gradients are rounded: sums over processes come in another order than sums over samples.

    Each gradient then differs by a few times 2^-24 of the sum of its parts' magnitudes. With eps=1e-3 Adam's step
    changes by at most 1000 times lr times that, and 5 steps with lr=0.01 stay within 1e-5.
    """
    from torch.distributed.fsdp import fully_shard

    def network() -> nn.Sequential:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3), nn.Tanh(), nn.Linear(3, 1))

    model, single = network(), network()
    for i in (0, 2, 4):
        fully_shard(model[i])
    fully_shard(model)
    optimizer = fusedoptim.AdamW(model.parameters(), lr=0.01, eps=1e-3)
    other = fusedoptim.AdamW(single.parameters(), lr=0.01, eps=1e-3)
    start = [q.detach().clone() for q in single.parameters()]
    for step in range(5):
        (model(share(step, own.rank, own.world)) ** 2).mean().backward()
        (single(data(step, PER_RANK * own.world)) ** 2).mean().backward()
        optimizer.step(zero_grad="to_none")
        other.step(zero_grad="to_none")
    for p, q, before in zip(model.parameters(), single.parameters(), start, strict=True):
        torch.testing.assert_close(whole(p), q.detach(), rtol=0, atol=1e-5)
        assert (q.detach() - before).abs().max() > 1e-3
