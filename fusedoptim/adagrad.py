"""Adagrad."""

import torch

from fusedoptim.settings import with_settings
from fusedoptim.step import FusedStep
from fusedoptim.torch_names import names_of_torch


class Adagrad(FusedStep, torch.optim.Adagrad):  # noqa: D101
    __doc__ = with_settings(torch.optim.Adagrad.__doc__)
    _rule = "adagrad"
    _torch_class = torch.optim.Adagrad


__getattr__ = names_of_torch(__name__)
