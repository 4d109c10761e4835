from torch.optim.swa_utils import *  # noqa: F403  # at run time it is torch's module: torch_names.py
