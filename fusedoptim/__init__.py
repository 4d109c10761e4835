"""torch.optim, with the whole step, gradient zeroing included, in one fused call.

Write ``import fusedoptim as optim`` for ``import torch.optim as optim``: every public name of ``torch.optim`` is here,
and every module of it by its name, ``fusedoptim.lr_scheduler`` for one. Those with kernels are this package's
own: ``SGD``, ``Adam``, ``AdamW``, ``Adadelta``, ``Adagrad``, ``Adamax``, ``ASGD``, ``NAdam``, ``RAdam``, ``RMSprop``
and ``Rprop``, and ``AdEMAMix``, ``AdamWScheduleFree``, ``Adan``, ``Lion`` and ``SGDScheduleFree``, which torch lacks.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # mypy holds to the first binding of a name, pyright and Python to the last: both are ours
    from fusedoptim.adadelta import Adadelta as Adadelta
    from fusedoptim.adagrad import Adagrad as Adagrad
    from fusedoptim.adam import Adam as Adam
    from fusedoptim.adamax import Adamax as Adamax
    from fusedoptim.adamw import AdamW as AdamW
    from fusedoptim.asgd import ASGD as ASGD
    from fusedoptim.nadam import NAdam as NAdam
    from fusedoptim.radam import RAdam as RAdam
    from fusedoptim.rmsprop import RMSprop as RMSprop
    from fusedoptim.rprop import Rprop as Rprop
    from fusedoptim.sgd import SGD as SGD

from torch import optim as _torch_optim
from torch.optim import *  # type: ignore[assignment]  # noqa: F403
from torch.optim import lr_scheduler as lr_scheduler
from torch.optim import swa_utils as swa_utils

from fusedoptim.adadelta import Adadelta as Adadelta
from fusedoptim.adagrad import Adagrad as Adagrad
from fusedoptim.adam import Adam as Adam
from fusedoptim.adamax import Adamax as Adamax
from fusedoptim.adamw import AdamW as AdamW
from fusedoptim.adan import Adan as Adan
from fusedoptim.ademamix import AdEMAMix as AdEMAMix
from fusedoptim.asgd import ASGD as ASGD
from fusedoptim.backend import get_backend as get_backend
from fusedoptim.backend import set_backend as set_backend
from fusedoptim.checkpoints.convert import convert_state_dict as convert_state_dict
from fusedoptim.clip import clip_grad_norm_ as clip_grad_norm_
from fusedoptim.clip import replace_clip_grad_norm as replace_clip_grad_norm
from fusedoptim.explain import explain_step as explain_step
from fusedoptim.from_torch import from_torch as from_torch
from fusedoptim.grad_scaler import GradScaler as GradScaler
from fusedoptim.lion import Lion as Lion
from fusedoptim.malloc import keep_freed_memory as keep_freed_memory
from fusedoptim.memory_report import memory as memory
from fusedoptim.nadam import NAdam as NAdam
from fusedoptim.native import build_info as build_info
from fusedoptim.radam import RAdam as RAdam
from fusedoptim.rmsprop import RMSprop as RMSprop
from fusedoptim.rprop import Rprop as Rprop
from fusedoptim.schedule_free import AdamWScheduleFree as AdamWScheduleFree
from fusedoptim.schedule_free import SGDScheduleFree as SGDScheduleFree
from fusedoptim.sgd import SGD as SGD
from fusedoptim.torch_names import find_modules_of_torch as _find_modules_of_torch
from fusedoptim.torch_names import names_of_torch as _names_of_torch
from fusedoptim.verification.verify import verify as verify

__all__ = [
    *_torch_optim.__all__,
    "AdEMAMix",
    "AdamWScheduleFree",
    "Adan",
    "GradScaler",
    "Lion",
    "SGDScheduleFree",
    "build_info",
    "clip_grad_norm_",
    "convert_state_dict",
    "explain_step",
    "from_torch",
    "get_backend",
    "keep_freed_memory",
    "memory",
    "replace_clip_grad_norm",
    "set_backend",
    "verify",
]

_find_modules_of_torch()
if not TYPE_CHECKING:  # which would take any name for one that is here
    __getattr__ = _names_of_torch(__name__)
