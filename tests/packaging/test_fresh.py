"""An interpreter that is forked is as good as one that is started."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import fresh
import pytest

ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": "/of/this", "FUSEDOPTIM_ANY": "1"}
SHOWN = """
import os, sys
print(__name__, sys.argv, sys.path[:2], *sorted(os.environ), os.getcwd(), sys.stdin.read())
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "fusedoptim", "helpers", "fresh"}))
print("to stderr", file=sys.stderr)
sys.exit(3)
"""


def test_it_begins_as_ordered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = fresh.run(SHOWN, ENVIRONMENT, 60)
    names = " ".join(sorted(ENVIRONMENT))
    assert done.stdout == f"__main__ ['-c'] ['', '/of/this'] {names} {tmp_path} \ntorch\n"
    assert (done.stderr, done.returncode) == ("to stderr\n", 3)


def test_nothing_is_left_to_the_next() -> None:
    assert fresh.run("import torch, fusedoptim; torch.set_default_dtype(torch.float64)", dict(os.environ), 60).args
    shown = "import sys, torch; print(torch.get_default_dtype(), 'fusedoptim' in sys.modules)"
    assert fresh.run(shown, ENVIRONMENT, 60).stdout == "torch.float32 False\n"


def test_errors_and_warnings_are_told() -> None:
    done = fresh.run("import warnings\ndef f():\n    warnings.warn('look')\nf()", ENVIRONMENT, 60)
    assert done.returncode == 1
    first, *_, last = done.stderr.splitlines()
    assert (first, last) == ("Traceback (most recent call last):", "UserWarning: look")
    assert "fresh.py" not in done.stderr


def test_it_is_ended_in_time() -> None:
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        fresh.run("import time; print('so far', flush=True); time.sleep(100)", ENVIRONMENT, 2)
    assert raised.value.output == "so far\n"
    assert fresh.run("print('next')", ENVIRONMENT, 60).stdout == "next\n"
