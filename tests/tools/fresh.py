"""Fresh interpreters at the price of a fork: one process, which has imported torch and nothing of ours, forks them.

To import torch takes two seconds, most of what such an interpreter does. ``run`` asks for one; as a program this is the
process that forks. What an environment variable can say is heard by whatever is imported later, and not by torch. With
the first optimizer torch imports more, ``OPTIMIZERS``, for another second and a half: of which one may ask as well.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import types
import warnings
from functools import cache
from typing import Any

OPTIMIZERS = "torch._dynamo"


@cache
def _forker(_pid: int, imported: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-c", f"import runpy, {imported}; runpy.run_path({__file__!r}, run_name='__main__')"]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.communicate)  # which closes its input: the end of its orders
    return process


def run(
    code: str, environment: dict[str, str], timeout: float, imported: str = "torch"
) -> subprocess.CompletedProcess[str]:
    """Run code with exactly this environment, with warnings of users as errors, and return what it printed."""
    process = _forker(os.getpid(), imported)
    assert process.stdin is not None
    assert process.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("stdout", "stderr")]
        order = {"code": code, "environment": environment, "folder": os.getcwd(), "files": files}
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        pid = int(process.stdout.readline())
        late = not select.select([process.stdout], [], [], timeout)[0]
        if late:
            os.kill(pid, signal.SIGKILL)
        status = int(process.stdout.readline())
        texts = []
        for name in files:
            with open(name) as file:
                texts.append(file.read())
    if late:
        raise subprocess.TimeoutExpired(code, timeout, *texts)
    return subprocess.CompletedProcess(code, status, *texts)


def _wait_for_orders() -> dict[str, Any] | None:
    """Fork for each line of the input; what a fork is to do, or None where there are no more."""
    import pytest  # noqa: F401
    import torch  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            return order
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return None


def _begin(order: dict[str, Any]) -> dict[str, Any]:
    """Make this the process that was ordered, and return the names of its main module."""
    for number, (name, flags) in enumerate(
        [(os.devnull, os.O_RDONLY), *((name, os.O_WRONLY | os.O_CREAT) for name in order["files"])]
    ):
        opened = os.open(name, flags)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(order["folder"])
    places = [os.environ.get("PYTHONPATH", ""), order["environment"].get("PYTHONPATH", "")]
    was, now = ([place for place in text.split(os.pathsep) if place] for text in places)
    sys.path[:] = ["", *now, *sys.path[1 + len(was) :]]
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = ["-c"]
    warnings.filterwarnings("error", category=UserWarning)
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    return main.__dict__


if __name__ == "__main__":
    _order = _wait_for_orders()
    if _order is not None:
        _names = _begin(_order)
        try:
            exec(compile(_order["code"], "<string>", "exec"), _names)
        except Exception as error:
            error.__traceback__ = error.__traceback__.tb_next  # without this file
            sys.excepthook(type(error), error, error.__traceback__)
            sys.exit(1)
