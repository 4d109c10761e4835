"""Adadelta."""

import torch

from fusedoptim.settings import with_settings
from fusedoptim.step import FusedStep
from fusedoptim.torch_names import names_of_torch


class Adadelta(FusedStep, torch.optim.Adadelta):  # noqa: D101
    __doc__ = with_settings(torch.optim.Adadelta.__doc__)
    _rule = "adadelta"
    _torch_class = torch.optim.Adadelta


__getattr__ = names_of_torch(__name__)
