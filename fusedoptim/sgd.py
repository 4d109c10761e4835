"""Stochastic gradient descent."""

import torch

from fusedoptim.settings import with_settings
from fusedoptim.step import FusedStep


class SGD(FusedStep, torch.optim.SGD):  # noqa: D101
    __doc__ = with_settings(torch.optim.SGD.__doc__)
    _rule = "sgd"
    _torch_class = torch.optim.SGD
