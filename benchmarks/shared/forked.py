"""A task in a forked child, which may hang."""

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

import torch

TIMEOUT = 8.0  # seconds for the child: far more than a few steps take on the slowest machine


def forked(
    way: str, task: Callable[[], dict[str, Any]], threads: int | None = None, timeout: float | None = None
) -> dict[str, Any]:
    """The outcome of a task in a forked child; {"hang": seconds} if it has none within `timeout`, or `TIMEOUT`."""
    reader, writer = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        try:
            if threads:
                torch.set_num_threads(threads)
            outcome = task()
        except BaseException:
            outcome = {"error": traceback.format_exc()}
        writer.send(outcome)
        os._exit(0)  # nothing of the parent's is cleaned up

    if way == "os.fork":
        pid = os.fork()
        if pid == 0:
            child()
    else:
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        pid = process.pid or 0
    writer.close()
    outcome: dict[str, Any] = {"error": "the child died"}
    if not reader.poll(timeout or TIMEOUT):
        os.kill(pid, signal.SIGKILL)
        outcome = {"hang": timeout or TIMEOUT}
    else:
        with contextlib.suppress(EOFError):
            outcome = reader.recv()
    reader.close()
    os.waitpid(pid, 0)
    return outcome
