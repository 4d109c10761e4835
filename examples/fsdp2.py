"""FSDP2 and distributed checkpoints: parameters, gradients and state are cut over the processes."""

import tempfile

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from launch import batch, launch, network, say
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import Module
from torch.nn.functional import mse_loss
from torch.nn.utils import clip_grad_norm_

import fusedoptim as optim


def train() -> None:
    """What every process does."""
    model = network()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = optim.AdamW(model.parameters(), lr=0.01, fused=True)  # fused=True: the kernels, or an error
    for step in range(200):
        if step == 100:
            save_and_load(model, optimizer)
        x, y = batch(step)
        loss = mse_loss(model(x), y)
        loss.backward()
        clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step(zero_grad="to_none")
    say(f"loss {loss.item():.4f}")
    assert loss < 0.5


def save_and_load(model: Module, optimizer: optim.AdamW) -> None:
    """Each process writes what it holds. Any number of processes may load it."""
    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder, src=0)
    weights, state = get_state_dict(model, optimizer)
    saved = {"model": weights, "optimizer": state}
    dcp.save(saved, checkpoint_id=folder[0])
    dcp.load(saved, checkpoint_id=folder[0])
    set_state_dict(model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])


if __name__ == "__main__":
    launch(train)
