"""AdamW."""

import torch

from fusedoptim.adam import Adam
from fusedoptim.settings import with_settings
from fusedoptim.torch_names import names_of_torch


class AdamW(Adam, torch.optim.AdamW):  # noqa: D101
    __doc__ = with_settings(torch.optim.AdamW.__doc__)
    _torch_class = torch.optim.AdamW


__getattr__ = names_of_torch(__name__)
