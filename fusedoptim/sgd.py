"""Stochastic gradient descent."""

import torch

from fusedoptim.step import FusedStep


class SGD(FusedStep, torch.optim.SGD):  # noqa: D101
    __doc__ = torch.optim.SGD.__doc__
    _rule = "sgd"
    _torch_class = torch.optim.SGD
