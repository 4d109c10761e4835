"""Steps in a child forked from a process that has stepped with several threads: the part "fork" of `run.py`."""

import argparse
import multiprocessing
import zlib
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from typing import Any

import torch

from benchmarks.busy.series import Stepper
from benchmarks.shared.forked import TIMEOUT, forked
from benchmarks.shared.measure import interleaved, ratio, spread
from benchmarks.shared.report import Record
from benchmarks.shared.variants import OURS

VARIANTS = ("torch-fused", OURS)
WAYS = ("os.fork", "multiprocessing")
THREADS = (None, 1)  # what the child sets; None: nothing, so as many as the parent
STEPS, WARM_UP = 20, 3


def work(stepper: Stepper, variant: str) -> dict[str, float]:
    """A series from the initial values on: its median, and a checksum of the parameters."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, torch's own operators hang in a forked child
    stepper.arena.reset()
    torch.set_num_threads(threads)
    for state in stepper.calls[variant].__self__.state.values():  # type: ignore[attr-defined]
        state["step"].zero_()
    for _ in range(WARM_UP):  # among other things these copy the pages that the processes shared
        stepper.calls[variant]()
    time = stepper.median(variant, STEPS, TIMEOUT / 4)
    return {"time": time, "checksum": sum(zlib.crc32(p.detach().numpy().data) for p in stepper.arena.params)}


def run(model: str, variant: str, way: str, threads: int | None) -> dict[str, Any]:
    """In a process of its own: steps, forks, and steps once more."""
    stepper = Stepper(model, [variant])
    parent = work(stepper, variant)
    outcome = forked(way, lambda: work(stepper, variant), threads)
    return {"parent": parent, "child": outcome, "parent_after": work(stepper, variant)}


def failed(outcome: Record) -> bool:
    """Whether the child of a round has not come to its end."""
    return "time" not in outcome["child"]


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The outcome of all rounds, or of the one that failed."""
    parents = [r["parent"]["time"] for r in rounds]
    after = ratio([r["parent_after"]["time"] for r in rounds], parents)
    result: dict[str, Any] = {"parent": spread(parents), "after": after, "correct": False}
    if failed(rounds[-1]):
        return {**result, "failure": rounds[-1]["child"]}
    children = [r["child"]["time"] for r in rounds]
    result["correct"] = all(r["child"]["checksum"] == r["parent"]["checksum"] for r in rounds)
    return {**result, "child": spread(children), "ratio": ratio(children, parents)}


def fork_part(model: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measures on the shapes of a model, and returns the result as a JSON object."""
    cases = list(product(VARIANTS, WAYS, THREADS))
    rounds: dict[tuple[str, str, int | None], list[dict[str, Any]]] = {case: [] for case in cases}
    for case in interleaved(cases, 1 if args.quick else 3):
        if not (rounds[case] and failed(rounds[case][-1])):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
                rounds[case].append(executor.submit(run, model, *case).result(6 * TIMEOUT))
    results = [
        {"variant": variant, "way": way, "child_threads": threads, **summary(rounds[variant, way, threads])}
        for variant, way, threads in cases
    ]
    return {"results": results, "claims": [], "good": all(r["correct"] for r in results if r["variant"] == OURS)}
