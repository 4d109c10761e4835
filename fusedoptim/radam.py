"""RAdam."""

import torch

from fusedoptim.settings import with_settings
from fusedoptim.step import FusedStep
from fusedoptim.torch_names import names_of_torch


class RAdam(FusedStep, torch.optim.RAdam):  # noqa: D101
    __doc__ = with_settings(torch.optim.RAdam.__doc__)
    _rule = "radam"
    _torch_class = torch.optim.RAdam


__getattr__ = names_of_torch(__name__)
