"""torch.compile of an optimizer's step, as torch's tutorial on compiled optimizers has it.

Without flags torch takes its for-loop on the CPU, and that is what is compiled. All tensors of a step are in one graph,
so compiling takes a part of a second for each; no figure contains it.
"""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from typing import Any, cast
from unittest import mock

import torch
from torch._dynamo.utils import counters
from torch._logging._internal import set_logs

from benchmarks.shared.measure import Call

COMPILED = "torch-compiled"


@contextlib.contextmanager
def empty_cache() -> Iterator[None]:
    """What is compiled within is compiled anew, whatever earlier processes have left, and leaves nothing."""
    folders = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with folders as folder, mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder):
        yield


class CompiledStep:
    def __init__(self, optimizer: Any, backend: str = "inductor") -> None:
        set_logs(dynamo=logging.ERROR)  # type: ignore[no-untyped-call]
        # Forgets the steps of other optimizers, which count towards a limit.
        torch.compiler.reset()  # type: ignore[no-untyped-call]
        counters.clear()
        self.optimizer = optimizer
        self.compiled = cast(Call, torch.compile(optimizer.step, backend=backend))
        for _ in range(2):
            self.compiled()

    def forget_steps(self) -> None:
        """Sets the counts of steps back to 0; the rest of the state belongs to the caller."""
        for state in self.optimizer.state.values():
            if "step" in state:
                state["step"].zero_()

    def require_one_graph(self) -> None:
        """Raises RuntimeError if steps were compiled again, or never: their times are not those of compiled code."""
        if (graphs := counters["stats"]["unique_graphs"]) != 1:
            raise RuntimeError(f"the step was compiled to {graphs} graphs, not to one")

    def __call__(self) -> None:
        self.compiled()
