"""The scripts of docs/scaling.md run, by themselves and under torchrun."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import fresh
import pytest
from test_processes import pytestmark  # noqa: F401  # where the others are skipped, so are these

ROOT = Path(__file__).parents[2]
SCRIPTS = [path for path in sorted((ROOT / "examples").glob("*.py")) if path.stem != "launch"]


def _loss(begin: str, *arguments: str) -> float:
    """What a program has printed, which ``begin`` begins in an interpreter that has imported torch already."""
    environment = {key: value for key, value in os.environ.items() if key != "RANK"}
    environment.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", PYTHONPATH=os.pathsep.join(sys.path))
    as_usual = f"import runpy, sys, warnings; warnings.resetwarnings(); sys.argv[:] = {list(arguments)}"
    done = fresh.run(f"{as_usual}; {begin}", environment, 200, fresh.OPTIMIZERS)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.fullmatch(r"loss (\d\.\d+)\n", done.stdout)
    assert found is not None, done.stdout
    return float(found[1])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script(script: Path) -> None:
    begin = "sys.path[0] = sys.argv[0].rpartition('/')[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    assert _loss(begin, str(script)) < 0.5


def test_script_under_torchrun() -> None:
    begin = "runpy.run_module('torch.distributed.run', run_name='__main__', alter_sys=True)"
    options = ("--standalone", "--nproc-per-node", "2")
    assert _loss(begin, "torchrun", *options, str(ROOT / "examples" / "ddp.py")) < 0.5


def test_page_names_every_script() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert all(f"../examples/{path.name}" in page for path in SCRIPTS)
