"""A process whose forked child imports the package before it does: prints what the child computed, and what itself.

Argument: how it forks, "os.fork", "multiprocessing", or "twice" for a child's child.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

TIMEOUT = 20  # seconds for a child: far more than it takes
SHAPES = {"Adam": [(400, 700), (150, 160)], "SGD": [(400, 700), (5,)]}


def make(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    params = [torch.nn.Parameter(torch.linspace(-1, 1, shape[0]).outer(torch.ones(shape[-1]))) for shape in shapes]
    for p in params:
        p.grad = torch.full_like(p, 0.25)
    return params


def has_worker() -> bool:
    """Whether this process has started a thread of ours."""
    names = (Path(f"/proc/self/task/{task}/comm").read_text() for task in os.listdir("/proc/self/task"))
    return "fusedoptim\n" in names


def work(params: dict[str, list[Tensor]]) -> str:
    """The digest of all bytes after steps and zeroing in two threads, each of enough elements for both."""
    import fusedoptim

    digest = hashlib.sha256()
    for name, of in params.items():
        optimizer = getattr(fusedoptim, name)(of, lr=0.01)
        for _ in range(3):
            optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        for p in of:
            assert p.grad is not None
            digest.update(p.detach().numpy().tobytes() + p.grad.numpy().tobytes())
    return digest.hexdigest()


def child(params: dict[str, list[Tensor]], generations: int = 1) -> NoReturn:
    signal.alarm(TIMEOUT)
    if generations > 1:
        pid = os.fork()
        if pid == 0:
            child(params, generations - 1)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    Path("/proc/self/comm").write_text(") S 1 1 1 1 1 0")  # it precedes the flags in /proc/self/stat
    digest = work(params)
    assert has_worker() or len(os.sched_getaffinity(0)) == 1
    print(digest, flush=True)
    os._exit(0)


def main(way: str) -> None:
    torch.set_num_threads(2)
    params = {name: make(shapes) for name, shapes in SHAPES.items()}
    torch.ones(1 << 20).add_(1)  # in two threads of libgomp, which a child does not have
    if way == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=child, args=(params,))
        process.start()
        process.join()
        code = process.exitcode
    else:
        pid = os.fork()
        if pid == 0:
            child(params, 2 if way == "twice" else 1)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(work(params), code)


if __name__ == "__main__":
    main(sys.argv[1])
