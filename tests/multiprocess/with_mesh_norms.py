"""The norm of DTensors of every cut, with numbers, gradients and copies that differ between processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from ranks import Rank, scenario
from torch import Tensor
from torch.nn import Parameter
from with_shards import cut, randn

import fusedoptim


def _meshes(own: Rank) -> tuple[Any, Any]:
    from torch.distributed.device_mesh import init_device_mesh

    plane = init_device_mesh("cpu", (own.world // 2, 2), mesh_dim_names=("data", "tensor"))
    return init_device_mesh("cpu", (own.world,)), plane


def _with_grad(grad: Tensor) -> Parameter:
    param = Parameter(torch.empty_like(grad))
    param.grad = grad
    return param


def _norm(params: Sequence[Tensor], norm_type: float = 2.0) -> float:
    """Which must have the same bits in all processes; no gradient is written."""
    import torch.distributed as dist

    norm = fusedoptim.SGD(params, lr=1.0).clip_grad_norm_(1.0, norm_type).item()
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, norm.hex())
    assert set(every) == {norm.hex()}
    return norm


@scenario("two", "four")
def norms_of_any_cut(own: Rank) -> None:
    """Each element counts once; of float64, so that the norm shows all that it is."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    line, plane = _meshes(own)
    full = [randn(*shape, seed=i).double() for i, shape in enumerate([(3, 70), (1, 5), (5, 0), (90, 100)])]
    wanted = torch.cat([x.flatten() for x in full]).norm().item()
    cuts: list[tuple[Any, Any]] = [(line, [p]) for p in (Shard(0), Shard(1), Replicate())]
    cuts += [(plane, [p, q]) for p in (Shard(0), Replicate()) for q in (Shard(0), Shard(1), Replicate())]
    for mesh, placements in cuts:
        params = [_with_grad(cut(x, mesh, *placements)) for x in full]
        assert _norm(params) == pytest.approx(wanted, rel=1e-15, abs=0)
        for order in (1.0, 3.0, math.inf):
            if order == math.inf:  # which torch 2.13 refuses in the processes whose shard is empty, and the others wait
                assert _norm(params, order) == max(x.abs().max().item() for x in full if x.numel() > 0)
            else:
                theirs: Any = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None], order)
                assert _norm(params, order) == theirs.full_tensor().item()
    mixed = [cut(x, mesh, *placements) for x, (mesh, placements) in zip(full, cuts[-4:], strict=True)]
    mixed[1] = full[1].clone()  # beside DTensors
    mixed[3] = DTensor.from_local(full[3] / own.world, line, [Partial()])
    params = [_with_grad(x) for x in mixed]
    assert _norm(params) == pytest.approx(wanted, rel=1e-15, abs=0)
    fusedoptim.clip_grad_norm_(params, wanted / 2)
    assert _norm(params) == pytest.approx(wanted / 2, rel=1e-6)  # which adds 1e-6 to the norm


@scenario("two", "four")
def norms_of_extremes(own: Rank) -> None:
    """Whose squares are out of range, where one process alone has them."""
    from torch.distributed.tensor import Shard

    line, _ = _meshes(own)
    for dtype, large in ((torch.float32, 1e25), (torch.float32, 1e-30), (torch.float64, 1e200), (torch.float64, 1.0)):
        grad = torch.zeros(2 * own.world, dtype=dtype)
        grad[-2:] = torch.tensor([3.0, 4.0], dtype=dtype) * large
        params = [_with_grad(cut(grad, line, Shard(0))), _with_grad(torch.ones(2, dtype=dtype) * large)]
        assert _norm(params) == pytest.approx(27**0.5 * large, rel=1e-6, abs=0)
        for bad in (math.inf, math.nan):
            grad[-1] = bad
            params[0].grad = cut(grad, line, Shard(0))
            assert _norm(params).hex() == _norm(params, math.inf).hex() == bad.hex()
            with pytest.raises(RuntimeError, match="non-finite"):
                fusedoptim.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)


@scenario("two", "four")
def norms_where_processes_differ(own: Rank) -> None:
    """Gradients that one process lacks, and copies that are no longer equal: all see one norm, and nobody waits."""
    from torch.distributed.tensor import Replicate, Shard

    line, plane = _meshes(own)
    p = _with_grad(cut(torch.ones(own.world, 9), line, Shard(0)))
    q = _with_grad(cut(torch.ones(4, 4), plane, Replicate(), Replicate()))
    plain = _with_grad(torch.ones(7))
    assert _norm([p, q, plain]) == pytest.approx((9 * own.world + 16 + 7) ** 0.5)
    last = own.rank == own.world - 1
    if last:
        q.grad.to_local().fill_(100)  # type: ignore[union-attr]
        plain.grad.fill_(100)  # type: ignore[union-attr]
    assert _norm([p, q, plain]) == pytest.approx((9 * own.world + 16 + 7) ** 0.5)  # as the first process has them
    if last:
        p.grad = plain.grad = None
    assert _norm([p, q, plain]) == pytest.approx((9 * (own.world - 1) + 16 + 7) ** 0.5)
    for bad in (q, plain):
        if last:
            bad.grad = torch.full_like(bad, math.inf)
        assert _norm([p, q, plain]) == math.inf
        bad.grad = torch.zeros_like(bad)
    p.grad = q.grad = plain.grad = None
    assert _norm([p, q, plain]) == 0
    half = _with_grad(cut(torch.full((own.world // 2, 3), 1.0 + own.rank % 2), plane["data"], Shard(0)))
    q.grad = torch.ones_like(q)
    assert _norm([q, half]) == _norm([half, q]) == pytest.approx((16 + 3 * own.world // 2) ** 0.5)


@scenario("two", "four")
def decisions_where_processes_differ(own: Rank) -> None:
    """All skip the step, whichever group has the infinity of one process, and whether or not it is clipped."""
    from torch.distributed.tensor import Shard

    line, _ = _meshes(own)
    for bad in (0, 1, None):
        for limits in ((1.0, None), (None, 1.0), (None, None)):
            params = [_with_grad(cut(torch.ones(own.world, 9), line, Shard(0))), _with_grad(torch.ones(7))]
            groups = [{"params": p, "max_grad_norm": x} for p, x in zip(params, limits, strict=True)]
            optimizer = fusedoptim.SGD(groups, lr=1.0, skip_nonfinite=True)
            if bad is not None and own.rank == own.world - 1:
                params[bad].grad = params[bad].grad * math.inf  # type: ignore[operator]
            optimizer.step()
            assert optimizer.skipped_steps == (0 if bad is None else 1)


@scenario("two")
def norms_of_what_is_being_received(own: Rank) -> None:
    import torch.distributed._functional_collectives as collectives
    from torch.distributed.tensor import DTensor, Replicate

    line, _ = _meshes(own)
    received = collectives.all_reduce(torch.full((5, 2), own.rank + 1.0), "sum", line)
    grad = DTensor.from_local(received, line, [Replicate()], run_check=False)
    assert isinstance(grad._local_tensor, collectives.AsyncCollectiveTensor)
    p = Parameter(cut(torch.zeros(5, 2), line, Replicate()))
    p.grad = grad
    assert fusedoptim.clip_grad_norm_([p], 1.0).item() == pytest.approx(90**0.5)
    assert _norm([p]) == pytest.approx(1.0)
