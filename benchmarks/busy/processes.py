"""Steps in processes of their own: with more threads than cores, and in a child that was forked."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from statistics import median
from typing import Any

import torch

from benchmarks.shared.arena import Arena
from benchmarks.shared.correctness import checksum
from benchmarks.shared.measure import in_rounds, interleaved, ratio, spread, time_call
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import OURS

VARIANTS = ("torch-fused", OURS)
COUNTS = (1, 2, 3, 4, 8)  # of threads
WAYS = ("os.fork", "multiprocessing")
CHILD_THREADS = (None, 1)  # what the child sets; None: nothing, so as many as the parent
STEPS = 20
TIMEOUT = 8.0  # seconds for a child: far more than a few steps take on the slowest machine
SERIES_TIMEOUT = 120


def steps(model: str, variant: str, threads: int | None = None) -> dict[str, Any]:
    """The median of some steps from the initial values on, and what they leave."""
    if threads:
        torch.set_num_threads(threads)
    chosen = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, torch's own operators hang in a forked child
    arena = Arena(MODELS[model], "adam")
    torch.set_num_threads(chosen)
    step = arena.step(variant)
    times = [time_call(step) for _ in range(STEPS)]
    return {"time": median(times[3:]), "checksum": checksum(arena.params)}


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` returns in a new process: libgomp keeps the threads that it has started.

    It is forked from one that has imported torch, which takes seconds, and started no threads.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo"])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(work, *arguments).result(SERIES_TIMEOUT)


def threads_of(model: str, rounds: int) -> list[dict[str, Any]]:
    """Each number of threads in processes of its own, taking turns."""
    times = in_rounds(product(VARIANTS, COUNTS), rounds, lambda key: float(alone(steps, model, *key)["time"]))
    return [{"variant": v, "threads": n, "time": spread(values)} for (v, n), values in times.items()]


def forked(way: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a forked child returns; `{"hang": seconds}` if nothing comes."""
    reader, writer = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        writer.send(work())
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
    if reader.poll(TIMEOUT):
        with contextlib.suppress(EOFError):
            outcome = reader.recv()
    else:
        os.kill(pid, signal.SIGKILL)
        outcome = {"hang": TIMEOUT}
    os.waitpid(pid, 0)
    return outcome


def fork_once(model: str, variant: str, way: str, threads: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Steps of a process, and of its child."""
    parent = steps(model, variant)
    return parent, forked(way, lambda: steps(model, variant, threads))


def forks_of(model: str, rounds: int) -> list[dict[str, Any]]:
    """Each variant, way of forking and number of threads of the child; until one fails."""
    found: dict[Any, list[Any]] = {case: [] for case in product(VARIANTS, WAYS, CHILD_THREADS)}
    for case in interleaved(found, rounds):
        if not found[case] or "time" in found[case][-1][1]:
            found[case].append(alone(fork_once, model, *case))
    results = []
    for (variant, way, threads), pairs in found.items():
        result: dict[str, Any] = {"variant": variant, "way": way, "child_threads": threads}
        if "time" not in pairs[-1][1]:
            result |= {"failure": pairs[-1][1], **({"correct": False} if variant == OURS else {})}
        else:
            result["ratio"] = ratio([child["time"] for _, child in pairs], [parent["time"] for parent, _ in pairs])
            result["correct"] = all(parent["checksum"] == child["checksum"] for parent, child in pairs)
        results.append(result)
    return results
