"""Trains in a process of its own, which gets its memory in one way or another, and counts what that costs.

`python -m benchmarks.memory.worker` is that process: it reads a request in JSON, trains, and prints the outcome.
"""

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

import fusedoptim
from benchmarks import ROOT
from benchmarks.memory.models import TRAININGS
from benchmarks.shared.correctness import checksum
from benchmarks.shared.measure import CPU_CLOCK
from benchmarks.shared.training import Trainer
from benchmarks.shared.variants import OURS, VARIANTS

WARM_UP = 6  # iterations: the heap has found its size, and losses are compared over them
FEWEST, MOST = 4, 200  # iterations that are timed
TIMEOUT = 90.0  # seconds for one training
CALLS = ("brk", "mmap", "munmap")  # with which memory comes from the system and goes back
MARK = "getppid"  # stands before and after the iterations that are timed


@dataclass(frozen=True)
class Way:
    """A way of clearing gradients and of getting memory; all of them take our steps of Adam.

    "none" and "fill" are `zero_grad(set_to_none=True)` and `(False)` at the start of an iteration, "to_zero" is within
    the step.
    """

    zero_grad: str = "none"
    keep: bool = False  # whether `fusedoptim.keep_freed_memory()` is called at the start
    environment: Mapping[str, str] = field(default_factory=dict)  # what is set before the process starts


def make_trainer(training: str, zero_grad: str) -> Trainer:
    workload = TRAININGS[training]
    mode = "to_zero" if zero_grad == "to_zero" else "separate"
    trainer = Trainer(workload.task(torch.device("cpu")), VARIANTS[OURS], "adam", workload.lr["adam"], mode)
    if zero_grad == "fill":
        trainer.begin = partial(trainer.optimizer.zero_grad, set_to_none=False)
    return trainer


def measure(training: str, zero_grad: str, keep: bool, seconds: float, threads: int) -> dict[str, Any]:
    """Trains in this process, which must be fresh; for so many seconds, with so many of torch's threads.

    Page faults are those of all threads, without those that read a file.
    """
    torch.set_num_threads(threads)
    kept = keep and fusedoptim.keep_freed_memory()
    trainer = make_trainer(training, zero_grad)
    losses = trainer.run(WARM_UP)
    after_warm_up = checksum(trainer.model.parameters())
    begin = time.perf_counter()
    trainer.run(1)
    count = max(FEWEST, min(MOST, int(seconds / (time.perf_counter() - begin))))
    os.getppid()
    before = resource.getrusage(resource.RUSAGE_SELF)
    times = trainer.time_iterations(count, CPU_CLOCK)
    after = resource.getrusage(resource.RUSAGE_SELF)
    os.getppid()
    return {
        "kept": kept,
        "iterations": count,
        "losses": losses,
        "checksum": after_warm_up,
        "iteration": statistics.median(times),
        "faults": (after.ru_minflt - before.ru_minflt) / count,
        "peak_mib": after.ru_maxrss / 1024,
    }


def ask(training: str, way: Way, seconds: float, threads: int, under: Sequence[str] = ()) -> dict[str, Any]:
    """The outcome of `measure` in a process of its own; raises what `subprocess.run` does if that fails or hangs.

    A command such as strace may run the process `under` it; the outcome has what it said as "log".
    """
    how = {"training": training, "zero_grad": way.zero_grad, "keep": way.keep, "seconds": seconds, "threads": threads}
    command = [*under, sys.executable, "-m", "benchmarks.memory.worker"]
    done = subprocess.run(
        command, input=json.dumps(how), env=os.environ | way.environment,
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE if under else None, text=True, timeout=TIMEOUT,
        check=True,
    )  # fmt: skip
    return {**json.loads(done.stdout), "log": done.stderr}


def calls_between_marks(log: str) -> Counter[str]:
    """How often each call stands between the first and the last mark in a log of strace, over all threads."""
    names = re.findall(r"^(?:\[pid +\d+\] )?(\w+)\(", log, re.MULTILINE)
    marks = [i for i, name in enumerate(names) if name == MARK]
    return Counter(names[marks[0] + 1 : marks[-1]])


def system_calls(training: str, way: Way, seconds: float, threads: int) -> dict[str, float]:
    """How often an iteration makes each of `CALLS`."""
    strace = ("strace", "-f", "--seccomp-bpf", "-qq", "-e", f"trace={','.join((*CALLS, MARK))}")
    outcome = ask(training, way, seconds, threads, strace)
    found = calls_between_marks(outcome["log"])
    return {call: found[call] / outcome["iterations"] for call in CALLS}


if __name__ == "__main__":
    print(json.dumps(measure(**json.load(sys.stdin))))
