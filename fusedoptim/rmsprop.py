"""RMSprop."""

import torch

from fusedoptim.settings import with_settings
from fusedoptim.step import FusedStep
from fusedoptim.torch_names import names_of_torch


class RMSprop(FusedStep, torch.optim.RMSprop):  # noqa: D101
    __doc__ = with_settings(torch.optim.RMSprop.__doc__)
    _rule = "rmsprop"
    _torch_class = torch.optim.RMSprop


__getattr__ = names_of_torch(__name__)
