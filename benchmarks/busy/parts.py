"""The parts of `run.py`, each given the name of a model and the options; its result is a JSON object."""

import argparse
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from itertools import product
from statistics import fmean, median
from typing import Any

import torch

from benchmarks.shared.arena import Arena
from benchmarks.shared.correctness import checksum
from benchmarks.shared.forked import TIMEOUT, forked
from benchmarks.shared.measure import Call, CpuClock, interleaved, ratio, spread, time_call
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import OURS

VARIANTS = ("torch-default", "torch-fused", OURS)
FAST = VARIANTS[1:]  # of the parts "threads" and "fork"
SHORTEST = 3  # steps, even where one takes longer than the limit
STATES = {"quiet": 0, "1 busy": 1, "2 busy": 2}
WARM_UP_S = 0.2  # the scheduler has then seen that these threads want a core
BLOCK = 500  # steps of which the largest is compared with the median
SETTLE_S = 0.05  # the scheduler moves what runs to where there is room
# Plain arithmetic, no memory traffic, no library with threads; ends when whoever started it has gone.
SPIN = """
import os
parent, x = os.getppid(), 1
while os.getppid() == parent:
    for _ in range(100_000):
        x = (x * 1103515245 + 12345) & 0x7FFFFFFF
"""
COUNTS = (1, 2, 3, 4, 8)  # of threads
SERIES_TIMEOUT = 120  # seconds for one series of a number of threads
WAYS = ("os.fork", "multiprocessing")
CHILD_THREADS = (None, 1)  # what the child sets; None: nothing, so as many as the parent
STEPS, FORK_STEPS, FORK_WARM_UP = 30, 20, 3


def time_series(step: Call, count: int, at_least: float = 0.0, at_most: float = math.inf) -> list[float]:
    """Microseconds of each step of a series of `count` steps.

    It goes on for `at_least` seconds even so, since the scheduler does not share a core by microseconds, and no further
    step begins after `at_most`.
    """
    clock = CpuClock()
    times: list[float] = []
    begin = clock.mark()
    passed = 0.0
    while len(times) < SHORTEST or passed < at_least or (len(times) < count and passed < at_most):
        times.append(time_call(step, clock))
        passed = (clock.mark() - begin) / 1e9
    return times


# ---- busy cores -----------------------------------------------------------------------------------------------------
class Spinners:
    """A context within which up to `count` processes spin; at first all of them stand still."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Spinners":
        self.processes = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(self.count)]
        time.sleep(10 * SETTLE_S)  # their own start is over, and they know their parent
        self.run(0)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def run(self, count: int) -> None:
        """Lets the first `count` of them spin, halts the others, and waits until that is so."""
        for i, process in enumerate(self.processes):
            os.kill(process.pid, signal.SIGCONT if i < count else signal.SIGSTOP)
        time.sleep(SETTLE_S)


def largest(rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    steps = [step for steps in rounds for step in steps]
    blocks = [steps[i : i + BLOCK] for i in range(0, max(1, len(steps) - BLOCK + 1), BLOCK)]
    return {"of": len(blocks[0]), "ratio": ratio([max(b) for b in blocks], [median(b) for b in blocks])}


def busy_part(model: str, args: argparse.Namespace) -> dict[str, Any]:
    """In each round every state in changing order, and in each state every variant in changing order."""
    arena = Arena(MODELS[model], "adam")
    verdicts = arena.check(VARIANTS)
    calls = {variant: arena.step(variant) for variant in VARIANTS}
    series: dict[tuple[str, str], list[list[float]]] = {key: [] for key in product(VARIANTS, STATES)}
    with Spinners(max(STATES.values())) as spinners:
        for i, state in enumerate(interleaved(list(STATES), args.rounds)):
            spinners.run(STATES[state])
            for variant in interleaved(list(VARIANTS), 1, seed=i):
                time_series(calls[variant], 0, WARM_UP_S)
                count, longest = (-(-args.steps // args.rounds), 60.0) if variant == OURS else (0, args.limit)
                series[variant, state].append(time_series(calls[variant], count, args.limit, longest))
    times = {key: [median(steps) for steps in rounds] for key, rounds in series.items()}
    means = {key: [fmean(steps) for steps in rounds] for key, rounds in series.items()}
    results = [
        {
            "variant": variant,
            "state": state,
            "time": spread(times[variant, state]),
            "ratio": ratio(times[variant, state], times[OURS, state]),
            "mean": spread(means[variant, state]),
            "mean_ratio": ratio(means[variant, state], means[OURS, state]),
            "slowdown": ratio(times[variant, state], times[variant, "quiet"]),
            "largest": largest(series[variant, state]),
            "correct": verdicts[variant].correct,
        }
        for variant, state in series
    ]
    return {"results": results, "good": verdicts[OURS].correct}


# ---- more threads than cores ----------------------------------------------------------------------------------------
_steps: dict[str, Call]  # of the process that runs `begin`


def begin(model: str, threads: int) -> None:
    """Prepares a process: libgomp keeps what it has started, so each count has a process."""
    global _steps
    torch.set_num_threads(threads)
    arena = Arena(MODELS[model], "adam")
    _steps = {variant: arena.step(variant) for variant in FAST}


def middle_step(variant: str, limit: float) -> float:
    """The median of a series after one step, in the process that `begin` has prepared."""
    _steps[variant]()
    return median(time_series(_steps[variant], STEPS, at_most=limit))


def threads_part(model: str, args: argparse.Namespace) -> dict[str, Any]:
    """Each number of threads in a process of its own, taking turns."""
    times: dict[tuple[str, int], list[float]] = {key: [] for key in product(FAST, COUNTS)}
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pools = {n: stack.enter_context(ProcessPoolExecutor(1, spawn, begin, (model, n))) for n in COUNTS}
        for variant, n in interleaved(list(times), args.rounds + 1):
            times[variant, n].append(pools[n].submit(middle_step, variant, args.limit).result(SERIES_TIMEOUT))
    times = {key: rounds[1:] for key, rounds in times.items()}  # the first round began the processes
    results = [
        {
            "variant": variant,
            "threads": n,
            "time": spread(values),
            "ratio": ratio(values, times[OURS, n]),
            "of_best": ratio(values, [min(pair) for pair in zip(times[variant, 1], times[variant, 2], strict=True)]),
        }
        for (variant, n), values in times.items()
    ]
    return {"results": results, "good": True}


# ---- a forked child -------------------------------------------------------------------------------------------------
def fork_once(model: str, variant: str, way: str, threads: int | None) -> dict[str, Any]:
    """In a process of its own: steps, forks, and steps once more, each time from the initial values on."""
    arena = Arena(MODELS[model], "adam")
    step: Any = arena.step(variant)

    def work() -> dict[str, float]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # with more, torch's own operators hang in a forked child
        arena.reset()
        torch.set_num_threads(threads)
        for state in step.__self__.state.values():
            state["step"].zero_()
        for _ in range(FORK_WARM_UP + 1):  # among other things these copy the pages that the processes shared
            step()
        time = median(time_series(step, FORK_STEPS, at_most=TIMEOUT / 4))
        return {"time": time, "checksum": checksum(arena.params)}

    return {"parent": work(), "child": forked(way, work, threads), "parent_after": work()}


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The outcome of all rounds, or of the one that failed."""
    parents = [r["parent"]["time"] for r in rounds]
    after = ratio([r["parent_after"]["time"] for r in rounds], parents)
    result: dict[str, Any] = {"parent": spread(parents), "after": after, "correct": False}
    if "time" not in rounds[-1]["child"]:
        return {**result, "failure": rounds[-1]["child"]}
    children = [r["child"]["time"] for r in rounds]
    result["correct"] = all(r["child"]["checksum"] == r["parent"]["checksum"] for r in rounds)
    return {**result, "child": spread(children), "ratio": ratio(children, parents)}


def fork_part(model: str, args: argparse.Namespace) -> dict[str, Any]:
    """Each variant, way of forking and number of threads of the child, in rounds until one fails."""
    rounds: dict[tuple[str, str, int | None], list[dict[str, Any]]]
    rounds = {case: [] for case in product(FAST, WAYS, CHILD_THREADS)}
    for case in interleaved(list(rounds), 1 if args.quick else 3):
        if not rounds[case] or "time" in rounds[case][-1]["child"]:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                rounds[case].append(pool.submit(fork_once, model, *case).result(6 * TIMEOUT))
    keys = "variant", "way", "child_threads"
    results = [{**dict(zip(keys, case, strict=True)), **summary(found)} for case, found in rounds.items()]
    return {"results": results, "good": all(r["correct"] for r in results if r["variant"] == OURS)}


Part = Callable[[str, argparse.Namespace], dict[str, Any]]
PARTS: Mapping[str, Part] = {"busy": busy_part, "threads": threads_part, "fork": fork_part}
