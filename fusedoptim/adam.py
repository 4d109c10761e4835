"""Adam and AdamW."""

from typing import ClassVar

import torch
from torch.optim import Optimizer

from fusedoptim.settings import with_settings
from fusedoptim.step import FusedStep


class Adam(FusedStep, torch.optim.Adam):  # noqa: D101
    __doc__ = with_settings(torch.optim.Adam.__doc__)
    _rule = "adam"
    _torch_class: ClassVar[type[Optimizer]] = torch.optim.Adam


class AdamW(Adam, torch.optim.AdamW):  # noqa: D101
    __doc__ = with_settings(torch.optim.AdamW.__doc__)
    _torch_class = torch.optim.AdamW
