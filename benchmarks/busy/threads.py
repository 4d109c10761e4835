"""Steps with more threads than there are cores: the part "threads" of `busy.py`."""

import argparse
import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from itertools import product
from typing import Any

import torch
from rich.console import Console

from benchmarks.shared.measure import Spread, interleaved, ratio
from benchmarks.shared.report import make_table, spread_text
from benchmarks.shared.series import Stepper
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


def measure(model: str, args: argparse.Namespace) -> dict[tuple[str, int], list[float]]:
    """Medians of series, one per round."""
    times: dict[tuple[str, int], list[float]] = {key: [] for key in product(VARIANTS, COUNTS)}
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        workers = {
            count: stack.enter_context(ProcessPoolExecutor(1, context, begin, (model, count))) for count in COUNTS
        }
        for variant, count in interleaved(list(times), args.rounds + 1):
            times[variant, count].append(workers[count].submit(series, variant, args.limit).result(TIMEOUT))
    return {key: rounds[1:] for key, rounds in times.items()}  # the first round began the processes


def threads_part(model: str, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measures on the shapes of a model, prints the table, and returns the result as a JSON object."""
    times = measure(model, args)

    def result(variant: str, count: int) -> Mapping[str, Any]:
        best = [min(pair) for pair in zip(times[variant, 1], times[variant, 2], strict=True)]
        return {
            "variant": variant,
            "threads": count,
            "time": asdict(Spread.of(times[variant, count])),
            "ratio": asdict(ratio(times[variant, count], times[OURS, count])),
            "of_best": asdict(ratio(times[variant, count], best)),
        }

    results = [result(*key) for key in times]
    rows = [
        (
            f"{r['variant']}, {r['threads']} threads",
            *(spread_text(Spread(**r[k])) for k in ("time", "ratio", "of_best")),
        )
        for r in results
    ]
    columns = ("", "time, µs", "/ ours, same threads", "/ the better of 1 and 2 threads")
    console.print(make_table(f"{model}, Adam, by number of threads", columns, rows))
    return {"results": results, "claims": [], "good": True}
