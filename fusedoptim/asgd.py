"""ASGD."""

import torch

from fusedoptim.settings import with_settings
from fusedoptim.step import FusedStep
from fusedoptim.torch_names import names_of_torch


class ASGD(FusedStep, torch.optim.ASGD):  # noqa: D101
    __doc__ = with_settings(torch.optim.ASGD.__doc__)
    _rule = "asgd"
    _torch_class = torch.optim.ASGD


__getattr__ = names_of_torch(__name__)
