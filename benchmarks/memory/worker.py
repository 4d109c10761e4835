"""Trains in processes that get their memory in different ways, and counts what that costs.

`python -m benchmarks.memory.worker` is a server: it has imported everything and used no thread yet. For each line of
its input, a request in JSON, it forks a child that trains, and prints the outcome as a line. So each training begins
with a fresh heap, and no import is waited for.
"""

import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

import fusedoptim
from benchmarks import ROOT
from benchmarks.memory.models import TRAININGS
from benchmarks.shared.correctness import checksum
from benchmarks.shared.forked import forked
from benchmarks.shared.measure import CpuClock
from benchmarks.shared.training import PHASES, Trainer
from benchmarks.shared.variants import OURS, VARIANTS

WARM_UP = 6  # iterations: the heap has found its size, and losses are compared over them
FEWEST, MOST = 4, 200  # iterations that are timed
TIMEOUT = 90.0  # seconds for one training
MARK = "getppid"  # the system's call that stands before and after iterations whose calls are counted


@dataclass(frozen=True)
class Way:
    """A way of clearing gradients and of getting memory; all of them take our steps of Adam.

    "none" and "fill" are `zero_grad(set_to_none=True)` and `(False)` at the start of an iteration, "to_zero" is within
    the step.
    """

    zero_grad: str = "none"
    keep: bool = False  # whether `fusedoptim.keep_freed_memory()` is called at the start
    environment: Mapping[str, str] = field(default_factory=dict)  # what is set before the process starts


class FaultClock(CpuClock):
    """A clock that also counts page faults, of all threads of this process and without those that read a file.

    `faults` is how many there were from each mark to the next, once `between` has been called.
    """

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.faults: list[int] = []

    def mark(self) -> int:
        self.counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        return super().mark()

    def between(self, marks: Sequence[int]) -> list[float]:
        """The time from each mark to the next, in microseconds; `marks` are all that were read."""
        self.faults = [after - before for before, after in itertools.pairwise(self.counts)]
        return super().between(marks)


def make_trainer(training: str, way: Way) -> Trainer:
    workload = TRAININGS[training]
    mode = "to_zero" if way.zero_grad == "to_zero" else "separate"
    trainer = Trainer(workload.task(torch.device("cpu")), VARIANTS[OURS], "adam", workload.lr["adam"], mode)
    if way.zero_grad == "fill":
        trainer.begin = partial(trainer.optimizer.zero_grad, set_to_none=False)
    return trainer


def losses_of(trainer: Trainer, iterations: int) -> list[float]:
    losses = []
    for i in range(iterations):
        trainer.begin()
        loss = trainer.forward(i)
        loss.backward()  # type: ignore[no-untyped-call]
        trainer.step()
        losses.append(loss.item())
    return losses


def measure(training: str, way: Way, seconds: float, threads: int, iterations: int | None = None) -> dict[str, Any]:
    """Trains in this process, which must be fresh; for so many seconds, with so many of torch's threads.

    With `iterations`, marks so many by calls of `getppid`, and times nothing.
    """
    torch.set_num_threads(threads)
    kept = way.keep and fusedoptim.keep_freed_memory()
    trainer = make_trainer(training, way)
    losses = losses_of(trainer, WARM_UP)
    after_warm_up = checksum(trainer.model.parameters())
    if iterations:
        os.getppid()
        trainer.run(iterations)
        os.getppid()
        return {}
    begin = time.perf_counter()
    trainer.run(1)
    count = max(FEWEST, min(MOST, int(seconds / (time.perf_counter() - begin))))
    clock, before = FaultClock(), resource.getrusage(resource.RUSAGE_SELF)
    times = trainer.time_phases(count, clock)
    after = resource.getrusage(resource.RUSAGE_SELF)
    faults = {phase: clock.faults[k :: len(PHASES)] for k, phase in enumerate(PHASES)}
    return {
        "kept": kept,
        "losses": losses,
        "checksum": after_warm_up,
        "phases": {phase: statistics.median(times[phase]) for phase in PHASES},
        "iteration": statistics.median(map(sum, zip(*times.values(), strict=True))),
        "faults": {phase: statistics.mean(faults[phase]) for phase in PHASES},
        "system": (after.ru_stime - before.ru_stime) * 1e6 / count,
        "peak_mib": after.ru_maxrss / 1024,
    }


@contextmanager
def server(environment: Mapping[str, str], before: Sequence[str] = ()) -> Iterator[Callable[..., dict[str, Any]]]:
    """A server in a process of its own; `before` is a command that runs it, such as `strace`.

    What it yields returns the outcome of `measure` in a fresh process, or raises RuntimeError if that failed or hung.
    """
    command = [*before, sys.executable, "-m", "benchmarks.memory.worker"]
    how: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen(command, env=os.environ | environment, **how) as process:
        to, back = process.stdin, process.stdout
        assert to is not None
        assert back is not None

        def ask(training: str, way: Way, **arguments: Any) -> dict[str, Any]:
            request = {"training": training, "zero_grad": way.zero_grad, "keep": way.keep, **arguments}
            print(json.dumps(request), file=to, flush=True)
            outcome: dict[str, Any] = json.loads(back.readline() or '{"error": "the server died"}')
            if "error" in outcome or "hang" in outcome:
                raise RuntimeError(f"{training}, {way}: {outcome}")
            return outcome

        yield ask


if __name__ == "__main__":
    for line in sys.stdin:
        request = json.loads(line)
        way = Way(request.pop("zero_grad"), request.pop("keep"))
        print(json.dumps(forked("os.fork", partial(measure, way=way, **request), None, TIMEOUT)), flush=True)
