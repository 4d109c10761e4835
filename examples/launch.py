"""Starts a training function in several processes: under torchrun in those that it made, else in two of its own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

import torch
import torch.distributed as dist


def launch(train: Callable[[], None], processes: int = 2) -> None:
    """Call ``train`` in every process, with the process group made; over gloo, on the CPU."""
    if "RANK" in os.environ:  # torchrun
        _run(0, train, None, int(os.environ["WORLD_SIZE"]))
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments = (train, f"file://{folder}/store", processes)
        torch.multiprocessing.start_processes(_run, arguments, nprocs=processes, start_method="fork")


def _run(rank: int, train: Callable[[], None], store: str | None, processes: int) -> None:
    torch.set_num_threads(1)
    if store is None:
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=processes)
    train()
    dist.barrier()
    dist.destroy_process_group()


def say(text: str) -> None:
    """Print in the first process only."""
    if dist.get_rank() == 0:
        print(text)


def batch(step: int, samples: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """What this process gets of the data of a step: sums of eight numbers are to be learnt."""
    generator = torch.Generator().manual_seed(1000 * step + dist.get_rank())
    x = torch.randn(samples, 8, generator=generator)
    return x, x.sum(1, keepdim=True)


def network() -> torch.nn.Sequential:
    """The same in every process."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
