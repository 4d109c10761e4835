"""torch.optim with the whole step in one fused call."""

from torch.optim import *  # noqa: F403
