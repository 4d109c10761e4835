"""Rprop."""

import torch

from fusedoptim.settings import with_settings
from fusedoptim.step import FusedStep
from fusedoptim.torch_names import names_of_torch


class Rprop(FusedStep, torch.optim.Rprop):  # noqa: D101
    __doc__ = with_settings(torch.optim.Rprop.__doc__)
    _rule = "rprop"
    _torch_class = torch.optim.Rprop


__getattr__ = names_of_torch(__name__)
