"""Adamax."""

import torch

from fusedoptim.settings import with_settings
from fusedoptim.step import FusedStep
from fusedoptim.torch_names import names_of_torch


class Adamax(FusedStep, torch.optim.Adamax):  # noqa: D101
    __doc__ = with_settings(torch.optim.Adamax.__doc__)
    _rule = "adamax"
    _torch_class = torch.optim.Adamax


__getattr__ = names_of_torch(__name__)
