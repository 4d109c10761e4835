"""DTensors as such: every way to cut, what the kernels leave to torch, and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact_models import OPTIMIZERS, PER_RANK, Exact, assert_same_bits, data, make, whole
from ranks import Rank, scenario
from torch import Tensor
from torch.nn import Parameter

import fusedoptim
from fusedoptim.step import FusedStep


def _mesh(own: Rank) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (own.world,))


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cut(x: Tensor, mesh: Any, *placements: Any) -> Any:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x, mesh, placements, src_data_rank=None)


@scenario("two", "four")
def any_cut(own: Rank) -> None:
    """Equal elements get equal bits, however they are cut."""
    from torch.distributed.tensor import Replicate, Shard

    mesh = _mesh(own)
    for kind in OPTIMIZERS:
        for placement in (Shard(0), Shard(1), Replicate()):
            for dtype in (torch.float32, torch.bfloat16):
                q = Parameter(randn(3, 70, seed=1).to(dtype))
                p = Parameter(cut(q.detach().clone(), mesh, placement))
                optimizer, other = make(kind, [p], fused=True), make(kind, [q], fused=True)
                for step in range(2):
                    q.grad = randn(3, 70, seed=10 + step).to(dtype)
                    p.grad = cut(q.grad.clone(), mesh, placement)
                    optimizer.step(zero_grad="to_zero")
                    other.step(zero_grad="to_zero")
                    assert not p.grad.to_local().any()
                assert_same_bits(*(torch.nn.ParameterList([x]) for x in (p, q)))


@scenario("two")
def left_to_torch(own: Rank) -> None:
    """Gradient or state cut otherwise, or parts of a sum: torch's own step, or the reason with ``fused=True``."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    mesh = _mesh(own)
    calls = []

    def note(optimizer: Any, params: Any, clips: Any = ()) -> None:
        calls.append(params)
        FusedStep.torch_step_itself(optimizer, params)  # type: ignore[attr-defined]

    FusedStep._torch_step = note  # type: ignore[method-assign]

    def step(which: Any, grad: Tensor, momentum: Any = None, param: Any = None, **options: Any) -> Any:
        p = Parameter(cut(randn(4, 3, seed=1), mesh, Shard(0))) if param is None else param
        optimizer = which([p], lr=0.1, momentum=0.9, **options)
        if momentum is not None:
            optimizer.state[p] = {"momentum_buffer": momentum.clone()}
        p.grad = grad
        optimizer.step()
        return whole(p).tolist()

    same = cut(randn(4, 3, seed=2), mesh, Shard(0))
    replicated = cut(randn(4, 3, seed=2), mesh, Replicate())
    plain = randn(4, 3, seed=2)
    part = DTensor.from_local(randn(4, 3, seed=3), mesh, [Partial()])
    for what, arguments in {
        "other placements": (replicated,),
        "state is a DTensor on another mesh or with other placements": (same, replicated.clone()),
    }.items():
        calls.clear()
        left = step(fusedoptim.SGD, *arguments)
        assert len(calls) == 1
        torch.testing.assert_close(left, step(torch.optim.SGD, *arguments, foreach=False))
        with pytest.raises(RuntimeError, match=what):
            step(fusedoptim.SGD, *arguments, fused=True)
    for what, arguments, param in (
        ("mixed torch.Tensor and DTensor", (same,), Parameter(plain.clone())),  # in torch's fused implementation
        ("state is not a DTensor", (same, plain), None),
        ("Partial placement", (part,), Parameter(DTensor.from_local(plain.clone(), mesh, [Partial()]))),
    ):
        with pytest.raises(RuntimeError, match=what):
            step(fusedoptim.SGD, *arguments, param=param, fused=True)


@scenario("two")
def still_being_received(own: Rank) -> None:
    """A gradient that an asynchronous collective returns is waited for."""
    import torch.distributed._functional_collectives as collectives
    from torch.distributed.tensor import DTensor, Replicate

    mesh = _mesh(own)
    p, q = (Parameter(randn(5, 2, seed=1)) for _ in range(2))
    p = Parameter(cut(p.detach(), mesh, Replicate()))
    received = collectives.all_reduce(torch.full((5, 2), own.rank + 1.0), "sum", mesh)
    assert isinstance(received, collectives.AsyncCollectiveTensor)
    p.grad = DTensor.from_local(received, mesh, [Replicate()], run_check=False)
    assert isinstance(p.grad._local_tensor, collectives.AsyncCollectiveTensor)
    q.grad = torch.full((5, 2), 3.0)
    optimizer, other = make("AdamW", [p], fused=True), make("AdamW", [q], fused=True)
    optimizer.step(zero_grad="to_zero")
    other.step()
    assert_same_bits(*(torch.nn.ParameterList([x]) for x in (p, q)))
    assert not p.grad.to_local().any()


def parallel(own: Rank) -> Any:
    """Layers cut by columns and by rows; with four processes FSDP cuts them again, to strided shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (own.world // 2, 2), mesh_dim_names=("data", "tensor"))
    model = Exact()
    plan = {"layers.0": ColwiseParallel(output_layouts=Replicate()),
            "layers.1": RowwiseParallel(input_layouts=Replicate())}  # fmt: skip
    parallelize_module(model, mesh["tensor"], plan)
    if own.world == 4:
        fully_shard(model, mesh=mesh["data"])
        kinds = {type(x).__name__ for p in model.parameters() for x in p.placements}
        assert "_StridedShard" in kinds, kinds
    return model


@scenario("two", "four")
def tensor_parallel(own: Rank) -> None:
    for kind in ("momentum", "AdamW"):
        model, single = parallel(own), Exact()
        optimizer, other = make(kind, model.parameters()), make(kind, single.parameters())
        samples = PER_RANK * own.world // 2
        for step in range(3):
            rows = slice(own.rank // 2 * PER_RANK, (own.rank // 2 + 1) * PER_RANK)
            model(data(step, samples)[rows]).backward()
            single(data(step, samples)).backward()
            optimizer.step(zero_grad="to_none")
            other.step(zero_grad="to_none")
        assert_same_bits(model, single, optimizer, other)
