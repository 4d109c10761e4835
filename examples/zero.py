"""ZeroRedundancyOptimizer: as DDP, but each process updates, and keeps the state of, a part of the parameters."""

from launch import batch, launch, network, say
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

import fusedoptim as optim


def train() -> None:
    """What every process does."""
    model = DistributedDataParallel(network())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=optim.AdamW, lr=0.01)
    for step in range(200):
        x, y = batch(step)
        loss = mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.consolidate_state_dict(to=0)  # for a checkpoint: all of the state, in the first process
    say(f"loss {loss.item():.4f}")
    assert loss < 0.5


if __name__ == "__main__":
    launch(train)
