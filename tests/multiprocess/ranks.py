"""Runs scenarios in several processes that talk over gloo: ``python ranks.py FOLDER`` writes the outcomes to FOLDER.

One program for all of them, since to import torch takes longest: it imports everything once, forks the processes of
each phase in turn, and each process runs all scenarios of that phase, in one order, each in a process group of its own.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

PHASES = {"two": 2, "four": 4, "two-again": 2}  # a checkpoint goes through all three
COLLECTIVE = timedelta(seconds=60)  # what one waits for another, whose scenario may have failed
PHASE = 150  # seconds, after which a process is ended


@dataclass(frozen=True)
class Rank:
    """One of the processes."""

    rank: int
    world: int
    phase: str
    backend: str
    folder: Path  # the same for all phases


SCENARIOS: dict[str, list[Callable[[Rank], None]]] = {phase: [] for phase in PHASES}


def scenario(*phases: str) -> Callable[[Callable[[Rank], None]], Callable[[Rank], None]]:
    """Register a function, which every process of these phases calls, once for each backend."""

    def register(function: Callable[[Rank], None]) -> Callable[[Rank], None]:
        for phase in phases:
            SCENARIOS[phase].append(function)
        return function

    return register


def scenarios_of(phase: str, backends: list[str]) -> list[tuple[str, Callable[[Rank], None], str]]:
    return [(f"{f.__name__}-{backend}", f, backend) for f in SCENARIOS[phase] for backend in backends]


def _run_rank(phase: str, rank: int, folder: Path, backends: list[str]) -> None:
    import torch
    import torch.distributed as dist

    import fusedoptim
    from fusedoptim.step import FusedStep

    def refuse(optimizer: Any, params: Any) -> None:
        raise AssertionError(f"left to torch: {[[tuple(p.shape) for p in group] for group in params]}")

    signal.alarm(PHASE)
    torch.set_num_threads(1)
    world = PHASES[phase]
    store = dist.FileStore(str(folder / f"store-{phase}"), world)
    store.set_timeout(2 * COLLECTIVE)
    torch_step = FusedStep._torch_step
    for name, function, backend in scenarios_of(phase, backends):
        outcome: dict[str, Any] = {"error": None}
        start = time.perf_counter()
        try:
            FusedStep._torch_step = refuse  # type: ignore[method-assign]
            FusedStep.torch_step_itself = torch_step  # type: ignore[attr-defined]
            own = dist.PrefixStore(name, store)
            dist.init_process_group("gloo", store=own, rank=rank, world_size=world, timeout=COLLECTIVE)
            with fusedoptim.set_backend(backend):
                function(Rank(rank, world, phase, backend, folder))
        except BaseException:
            outcome["error"] = traceback.format_exc()
        store.set(f"{name}-{rank}", "done")  # whoever is first waits, and no group ends under another's feet
        store.wait([f"{name}-{other}" for other in range(world)])
        dist.destroy_process_group()
        outcome["seconds"] = time.perf_counter() - start
        (folder / f"{phase}-{name}-{rank}.json").write_text(json.dumps(outcome))


def main(folder: Path, backends: list[str]) -> None:
    import with_checkpoints
    import with_clipping
    import with_ddp
    import with_fsdp
    import with_fsdp1
    import with_mesh_norms
    import with_shards
    import with_storage

    # What torch's engines import once they run: here, not in each process.
    late = ("algorithms.model_averaging.averagers", "checkpoint", "elastic.agent.server.api", "fsdp", "optim")
    for name in ("fsspec", "torch._dynamo", *(f"torch.distributed.{x}" for x in late)):
        importlib.import_module(name)
    gc.freeze()  # or each process collects in all of that, and has its own copy then
    assert all(
        (with_checkpoints, with_clipping, with_ddp, with_fsdp, with_fsdp1, with_mesh_norms, with_shards, with_storage)
    )
    for phase, world in PHASES.items():
        children = []
        for rank in range(world):
            child = os.fork()
            if child == 0:
                try:
                    _run_rank(phase, rank, folder, backends)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)


if __name__ == "__main__":
    sys.modules["ranks"] = sys.modules["__main__"]  # the one whose table the scenarios fill
    main(Path(sys.argv[1]), sys.argv[2].split(","))
