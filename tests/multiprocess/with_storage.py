"""Storages of DTensors: the same bits for any number of processes, and checkpoints for another number of them."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch
from ranks import Rank, scenario
from torch import Tensor
from torch.nn import Parameter

sys.path.append(str(Path(__file__).parents[1] / "tools"))
from steps import numbers
from storages import BF16, SETTINGS, Storage

SHAPES = [(70, 100), (5000,), (3,), (5, 30, 80)]


def values(seed: int) -> list[Tensor]:
    return [numbers(shape, torch.float32, seed * 100 + i).bfloat16() for i, shape in enumerate(SHAPES)]


def distributed(tensors: list[Tensor], mesh: Any) -> list[Any]:
    from torch.distributed.tensor import DTensor, Shard

    if mesh is None:
        return tensors
    parts = [x.tensor_split([-(-len(x) // mesh.size()) * i for i in range(1, mesh.size())]) for x in tensors]
    locals_ = [part[mesh.get_local_rank()].clone() for part in parts]
    return [
        DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=x.shape, stride=x.stride())
        for local, x in zip(locals_, tensors, strict=True)
    ]


def trained(storage: Storage, mesh: Any, steps: range, optimizer: Any = None) -> Any:
    if optimizer is None:
        optimizer = storage.make([Parameter(x) for x in distributed(values(0), mesh)])
    for step in steps:
        for param, grad in zip(optimizer.param_groups[0]["params"], distributed(values(step + 1), mesh), strict=True):
            param.grad = grad
        optimizer.step()
    return optimizer


def assert_same(one: Any, other: Any, what: str) -> None:
    """Of tensors that are 1-dimensional, DTensors have no states in 8 bits: their blocks would not be the same."""
    for mine, theirs in zip(one.param_groups[0]["params"], other.param_groups[0]["params"], strict=True):
        if mine.ndim == 1 and "8" in what:
            continue
        assert torch.equal(mine.full_tensor(), theirs), what
        for name, value in other.state[theirs].items():
            own = one.state[mine][name]
            assert own.dtype == value.dtype, f"{what}: {name}"
            whole = own.double().full_tensor() if name != "step" else own  # gloo gathers no int16
            assert torch.equal(whole, value.to(whole.dtype)), f"{what}: {name}"


@scenario("two", "four")
def any_storage_of_dtensors(own: Rank) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (own.world,))
    for rule in ("AdamW", "SGD"):
        for name, settings in SETTINGS.items():
            storage = Storage(rule, BF16, BF16, settings)
            optimizer = trained(storage, mesh, range(3))
            assert_same(optimizer, trained(storage, None, range(3)), f"{rule}, {name}")


@scenario("two")
def the_other_optimizers(own: Rank) -> None:
    """In few storages, and on from a file of their own: the ways are those of the rules above."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (own.world,))
    for rule in ("Adadelta", "Adagrad", "Adamax", "Lion", "RAdam", "RMSprop", "Rprop"):
        for name in ("plain", "bf16 state", "stochastic, averages"):
            storage = Storage(rule, BF16, BF16, SETTINGS[name])
            optimizer = trained(storage, mesh, range(2))
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            trained(storage, mesh, range(2, 4), optimizer)
            assert_same(optimizer, trained(storage, None, range(4)), f"{rule}, {name}")


@scenario("two", "four")
def checkpoints_of_any_storage(own: Rank) -> None:
    """Saved by all processes, and loaded by each alone, which goes on with the same bits."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (own.world,))
    for name in ("bf16 state", "8bit", "master", "remainder", "kahan", "stochastic"):
        storage = Storage("AdamW", BF16, BF16, SETTINGS[name])
        optimizer = trained(storage, mesh, range(3))
        folder = str(own.folder / name.replace(" ", "_"))
        dcp.save(named(optimizer), checkpoint_id=folder)
        alone = trained(storage, None, range(1))  # whose tensors are written over
        dcp.load(into := named(alone), checkpoint_id=folder, no_dist=True)
        alone.load_state_dict({"state": into["state"], "param_groups": alone.state_dict()["param_groups"]})
        for param, value in zip(alone.param_groups[0]["params"], into["params"].values(), strict=True):
            param.data.copy_(value)
        assert_same(trained(storage, mesh, range(3, 5), optimizer), trained(storage, None, range(3, 5), alone), name)


def named(optimizer: Any) -> dict[str, Any]:
    params = optimizer.param_groups[0]["params"]
    skip = (1, 2)  # one dimension: of DTensors in another dtype than in one process
    state = {
        i: dict(x) for i, x in optimizer.state_dict()["state"].items() if i not in skip or "exp_avg_scale" not in x
    }
    return {"state": state, "params": {str(i): p.detach() for i, p in enumerate(params)}}
