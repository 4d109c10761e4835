"""Stochastic gradient descent."""

import torch

from fusedoptim.settings import with_settings
from fusedoptim.step import FusedStep
from fusedoptim.torch_names import names_of_torch


class SGD(FusedStep, torch.optim.SGD):  # noqa: D101
    __doc__ = with_settings(torch.optim.SGD.__doc__)
    _rule = "sgd"
    _torch_class = torch.optim.SGD


__getattr__ = names_of_torch(__name__)
