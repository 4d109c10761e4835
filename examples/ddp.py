"""DistributedDataParallel: every process holds everything, and gradients are averaged."""

from launch import batch, launch, network, say
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

import fusedoptim as optim


def train() -> None:
    """What every process does."""
    # Gradients are views of the buckets that are reduced, so they are zeroed in place, in the step's own pass.
    model = DistributedDataParallel(network(), gradient_as_bucket_view=True)
    optimizer = optim.AdamW(model.parameters(), lr=0.01, fused=True)
    for step in range(200):
        x, y = batch(step)
        loss = mse_loss(model(x), y)
        loss.backward()
        optimizer.step(zero_grad="to_zero")
    say(f"loss {loss.item():.4f}")
    assert loss < 0.5


if __name__ == "__main__":
    launch(train)
