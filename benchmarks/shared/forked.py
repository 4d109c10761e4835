"""A task in a forked child, which may hang."""

import json
import multiprocessing
import os
import selectors
import signal
import traceback
from collections.abc import Callable
from typing import Any

import torch

TIMEOUT = 8.0  # seconds for the child: far more than a few steps take on the slowest machine
Task = Callable[[], dict[str, Any]]


def child(writer: int, task: Task, threads: int | None) -> None:
    """What the child does: the task, its outcome into the pipe, and out, with nothing of the parent's cleaned up."""
    try:
        if threads:
            torch.set_num_threads(threads)
        outcome: dict[str, Any] = task()
    except BaseException:
        outcome = {"error": traceback.format_exc()}
    os.write(writer, json.dumps(outcome).encode())
    os._exit(0)


def forked(way: str, task: Task, threads: int | None = None, timeout: float | None = None) -> dict[str, Any]:
    """The outcome of a task in a forked child; {"hang": seconds} if it has none within `timeout`, or `TIMEOUT`."""
    timeout = timeout or TIMEOUT
    reader, writer = os.pipe()
    if way == "os.fork":
        pid = os.fork()
        if pid == 0:
            child(writer, task, threads)
    else:
        process = multiprocessing.get_context("fork").Process(target=child, args=(writer, task, threads))
        process.start()
        pid = process.pid or 0
    os.close(writer)
    with selectors.DefaultSelector() as selector, os.fdopen(reader, "rb") as pipe:
        selector.register(pipe, selectors.EVENT_READ)
        hangs = not selector.select(timeout)
        if hangs:
            os.kill(pid, signal.SIGKILL)
        text = pipe.read()
    os.waitpid(pid, 0)
    if hangs:
        return {"hang": timeout}
    return json.loads(text) if text else {"error": "the child died"}  # type: ignore[no-any-return]
