"""Adam."""

from typing import ClassVar

import torch
from torch.optim import Optimizer

from fusedoptim.settings import with_settings
from fusedoptim.step import FusedStep
from fusedoptim.torch_names import names_of_torch


class Adam(FusedStep, torch.optim.Adam):  # noqa: D101
    __doc__ = with_settings(torch.optim.Adam.__doc__)
    _rule = "adam"
    _torch_class: ClassVar[type[Optimizer]] = torch.optim.Adam


__getattr__ = names_of_torch(__name__)
