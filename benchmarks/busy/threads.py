"""Steps with more threads than there are cores: the part "threads" of `run.py`."""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from itertools import product
from typing import Any

import torch

from benchmarks.busy.series import Stepper
from benchmarks.shared.measure import interleaved, ratio, spread
from benchmarks.shared.variants import OURS

VARIANTS = ("torch-fused", OURS)
COUNTS = (1, 2, 3, 4, 8)
STEPS = 30
TIMEOUT = 120  # seconds for one series

_stepper: Stepper  # of the process that runs `begin`


def begin(model: str, threads: int) -> None:
    """Prepares a process: libgomp keeps what it has started, so each count has a process."""
    global _stepper
    torch.set_num_threads(threads)
    _stepper = Stepper(model, list(VARIANTS))


def series(variant: str, limit: float) -> float:
    """The median of a series in the process that `begin` has prepared."""
    return _stepper.median(variant, STEPS, limit)


def threads_part(model: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measures on the shapes of a model, and returns the result as a JSON object."""
    times: dict[tuple[str, int], list[float]] = {key: [] for key in product(VARIANTS, COUNTS)}
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        workers = {
            count: stack.enter_context(ProcessPoolExecutor(1, context, begin, (model, count))) for count in COUNTS
        }
        for variant, count in interleaved(list(times), args.rounds + 1):
            times[variant, count].append(workers[count].submit(series, variant, args.limit).result(TIMEOUT))
    times = {key: rounds[1:] for key, rounds in times.items()}  # the first round began the processes
    results = [
        {
            "variant": variant,
            "threads": count,
            "time": spread(values),
            "ratio": ratio(values, times[OURS, count]),
            "of_best": ratio(values, [min(pair) for pair in zip(times[variant, 1], times[variant, 2], strict=True)]),
        }
        for (variant, count), values in times.items()
    ]
    return {"results": results, "claims": [], "good": True}
