"""Tensor parallelism: the first layer is cut by columns, the second by rows, and both stay so in the optimizer."""

import torch.distributed as dist
from launch import batch, launch, network, say
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import mse_loss

import fusedoptim as optim


def train() -> None:
    """What every process does."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = parallelize_module(network(), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    optimizer = optim.SGD(model.parameters(), lr=0.02, momentum=0.9, fused=True)  # torch's fused SGD takes no DTensor
    for step in range(200):
        x, y = batch(step)
        dist.broadcast(x, src=0)  # the processes share the model, not the data
        dist.broadcast(y, src=0)
        loss = mse_loss(model(x), y)
        loss.backward()
        optimizer.step(zero_grad="to_none")
    say(f"loss {loss.item():.4f}")
    assert loss < 0.5


if __name__ == "__main__":
    launch(train)
