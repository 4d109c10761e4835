"""Training in two and in four processes, on torch's own engines. Which scenario failed, and in which process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import torch.distributed
import with_checkpoints
import with_clipping
import with_ddp
import with_fsdp
import with_fsdp1
import with_mesh_norms
import with_shards
import with_storage

from fusedoptim import native

assert all(
    (with_checkpoints, with_clipping, with_ddp, with_fsdp, with_fsdp1, with_mesh_norms, with_shards, with_storage)
)  # which fill the table

BACKENDS = ["native", "reference"] if native.available() else ["reference"]
LIMIT = 400  # seconds
ALL = [(phase, name) for phase in ranks.PHASES for name, _, _ in ranks.scenarios_of(phase, BACKENDS)]
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available() or not hasattr(os, "fork"),
    reason="this torch has no gloo, or this system no fork",
)


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the program wrote: a folder of outcomes, and its output."""
    folder = tmp_path_factory.mktemp("ranks")
    program = [sys.executable, ranks.__file__, str(folder), ",".join(BACKENDS)]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo", "KINETO_LOG_LEVEL": "99"}
    environment = {**os.environ, **own}
    with open(folder / "output", "w") as output:
        running = subprocess.Popen(program, stdout=output, stderr=output, env=environment, start_new_session=True)
        try:
            running.wait(LIMIT)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)  # its own session: the program and the processes it forked
            running.wait()
    return folder


@pytest.mark.parametrize(("phase", "name"), ALL, ids=[f"{phase}-{name}" for phase, name in ALL])
def test_scenario(phase: str, name: str, outcomes: Path) -> None:
    errors = []
    for rank in range(ranks.PHASES[phase]):
        file = outcomes / f"{phase}-{name}-{rank}.json"
        if not file.exists():
            errors.append(
                f"process {rank} was ended, or did not get so far:\n{(outcomes / 'output').read_text()[-3000:]}"
            )
        elif error := json.loads(file.read_text())["error"]:
            errors.append(f"process {rank}: {error}")
    assert not errors, "\n".join(errors)
