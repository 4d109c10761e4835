"""Adam and AdamW."""

import torch

from fusedoptim.step import FusedStep


class Adam(FusedStep, torch.optim.Adam):
    __doc__ = torch.optim.Adam.__doc__
    _rule = "adam"
    _torch_class = torch.optim.Adam


class AdamW(Adam, torch.optim.AdamW):
    __doc__ = torch.optim.AdamW.__doc__
    _torch_class = torch.optim.AdamW
