"""The import of DTensor takes a second: it is left to who uses it."""

from __future__ import annotations

from helpers import run_python


def test_import_of_no_dtensor() -> None:
    assert run_python("import sys, fusedoptim; print('torch.distributed.tensor' in sys.modules)") == "False\n"
