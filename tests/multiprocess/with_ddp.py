"""DistributedDataParallel and ZeroRedundancyOptimizer: every process holds all parameters, as plain tensors."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from exact_models import OPTIMIZERS, PER_RANK, Exact, alone, assert_same_bits, data, make, share
from ranks import Rank, scenario
from torch.nn.parallel import DistributedDataParallel

import fusedoptim

STEPS = range(3)


def _train(own: Rank, kind: str, zero_grad: str | None = None, **engine: Any) -> tuple[Any, Any]:
    model = DistributedDataParallel(Exact(), **engine)
    optimizer = make(kind, model.parameters())
    for step in STEPS:
        if zero_grad is None:
            optimizer.zero_grad()
        model(share(step, own.rank, own.world)).backward()
        optimizer.step(zero_grad=zero_grad)
    return model.module, optimizer


@scenario("two", "four")
def ddp(own: Rank) -> None:
    for kind in OPTIMIZERS:
        model, optimizer = _train(own, kind)
        wanted, other = alone(kind, own.world, STEPS)
        assert_same_bits(model, wanted, optimizer if kind != "SGD" else None, other)


@scenario("two", "four")
def ddp_zeroes_its_buckets(own: Rank) -> None:
    """Gradients are views of the buckets that are reduced; zeroed in the step, they stay so."""
    for kind in ("momentum", "AdamW"):
        model = DistributedDataParallel(Exact(), gradient_as_bucket_view=True)
        optimizer = make(kind, model.parameters())
        places = None
        for step in STEPS:
            model(share(step, own.rank, own.world)).backward()
            optimizer.step(zero_grad="to_zero")
            grads = [p.grad for p in model.parameters()]
            assert all(not grad.any() for grad in grads)
            assert len({grad.untyped_storage().data_ptr() for grad in grads}) == 1, "one bucket holds all"
            now = [grad.data_ptr() for grad in grads]
            assert step < 2 or now == places  # DDP sets its buckets anew after the first step
            places = now
        assert_same_bits(model.module, alone(kind, own.world, STEPS)[0])


@scenario("two", "four")
def ddp_static_graph(own: Rank) -> None:
    model, _ = _train(own, "Adam", "to_none", static_graph=True)
    assert_same_bits(model, alone("Adam", own.world, STEPS)[0])
    assert all(p.grad is None for p in model.parameters())


@scenario("two", "four")
def ddp_accumulates(own: Rank) -> None:
    """Two backward passes for each step, of which only the second communicates."""
    model = DistributedDataParallel(Exact())
    optimizer, single = make("AdamW", model.parameters()), Exact()
    other = make("AdamW", single.parameters())
    for step in STEPS:
        for part in range(2):
            with model.no_sync() if part == 0 else nullcontext():
                model(share(10 * step + part, own.rank, own.world)).backward()
            single(data(10 * step + part, PER_RANK * own.world)).backward()
        optimizer.step(zero_grad="to_zero")
        other.step(zero_grad="to_zero")
    assert_same_bits(model.module, single, optimizer, other)


@scenario("two", "four")
def ddp_with_unused_parameters(own: Rank) -> None:
    model = DistributedDataParallel(Exact(unused=True), find_unused_parameters=True)
    optimizer = make("AdamW", model.parameters())
    before = [p.detach().clone() for p in model.module.unused.parameters()]
    for step in STEPS:
        optimizer.zero_grad()
        model(share(step, own.rank, own.world)).backward()
        optimizer.step()
    unused = list(model.module.unused.parameters())
    assert all(
        torch.equal(p, q) and p.grad is None and p not in optimizer.state for p, q in zip(unused, before, strict=True)
    )
    model.module.unused = None
    assert_same_bits(model.module, alone("AdamW", own.world, STEPS)[0])


@scenario("two", "four")
def zero_redundancy(own: Rank) -> None:
    """Each process updates a part of the parameters and sends them to the others."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    for as_view in (False, True):
        for kind in ("momentum", "AdamW"):
            name, options = OPTIMIZERS[kind]
            model = DistributedDataParallel(Exact())
            optimizer = ZeroRedundancyOptimizer(
                model.parameters(),
                optimizer_class=getattr(fusedoptim, name),
                parameters_as_bucket_view=as_view,
                **options,
            )
            for step in STEPS:
                optimizer.zero_grad()
                model(share(step, own.rank, own.world)).backward()
                optimizer.step()
            wanted, other = alone(kind, own.world, STEPS)
            assert_same_bits(model.module, wanted)
            held = sum(len(state) > 0 for state in optimizer.optim.state.values())
            assert held < len(list(model.parameters())), "no process holds all the state"
            optimizer.consolidate_state_dict(to=0)
            if own.rank == 0:
                copy = make(kind, model.module.parameters())
                copy.load_state_dict(optimizer.state_dict())
                assert_same_bits(model.module, wanted, copy, other)
