"""What type checkers see of the package; `make lint` checks this file, nothing runs it."""
# mypy: warn-unused-ignores

import torch
from torch.nn import Parameter
from typing_extensions import assert_type

import fusedoptim
from fusedoptim.adagrad import Adagrad
from fusedoptim.adam import Adam, adam
from fusedoptim.adamw import AdamW, adamw
from fusedoptim.lr_scheduler import StepLR
from fusedoptim.optimizer import Optimizer
from fusedoptim.sgd import SGD, sgd
from fusedoptim.swa_utils import AveragedModel


def classes_are_ours(params: list[Parameter]) -> None:
    """Not torch's, which the package takes from torch.optim as well."""
    assert_type(fusedoptim.SGD(params), SGD)
    assert_type(fusedoptim.Adam(params), Adam)
    assert_type(fusedoptim.AdamW(params), AdamW)
    assert_type(fusedoptim.Adagrad(params), Adagrad)
    fusedoptim.AdamW(params, max_grad_norm=1.0).step(zero_grad="to_none")
    assert_type(fusedoptim.AdamW(params).grad_norm, torch.Tensor | None)


def others_are_torchs(params: list[Parameter], model: torch.nn.Module) -> None:
    """And a name that nobody has is an error."""
    assert_type(fusedoptim.Adafactor(params), torch.optim.Adafactor)
    assert_type(fusedoptim.lr_scheduler.StepLR(fusedoptim.SGD(params), 1), torch.optim.lr_scheduler.StepLR)
    assert_type(StepLR(SGD(params), 1), torch.optim.lr_scheduler.StepLR)
    assert_type(AveragedModel(model), torch.optim.swa_utils.AveragedModel)
    optimizer: torch.optim.Optimizer = Optimizer(params, {})
    print(optimizer, adam, adamw, sgd)
    print(fusedoptim.Adm)  # type: ignore[attr-defined]
