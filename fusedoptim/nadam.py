"""NAdam."""

import torch

from fusedoptim.settings import with_settings
from fusedoptim.step import FusedStep
from fusedoptim.torch_names import names_of_torch


class NAdam(FusedStep, torch.optim.NAdam):  # noqa: D101
    __doc__ = with_settings(torch.optim.NAdam.__doc__)
    _rule = "nadam"
    _torch_class = torch.optim.NAdam


__getattr__ = names_of_torch(__name__)
