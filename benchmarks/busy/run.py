"""How does a step of Adam fare where the processor is not its own: busy cores, more threads than cores, a forked child?

Other processes spin in plain arithmetic, none, one or two of them in turn within each round. Steps follow one another
with nothing between them. Then torch's threads are set to 1, 2, 3, 4 and 8, in processes that take turns; and a process
that has stepped with several threads forks, and its child steps: one that hangs is reported.

Output: three tables for each model, `busy.json`; exit status 1 if a step of ours was wrong or hung.
"""

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import product
from statistics import fmean, median
from typing import Any

from benchmarks.busy.processes import forks_of, threads_of
from benchmarks.shared.arena import Arena
from benchmarks.shared.files import Record
from benchmarks.shared.measure import Call, interleaved, ratio, spread, time_call
from benchmarks.shared.options import question
from benchmarks.shared.report import Table, number
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import OURS

SHAPES = ("tutorial-mlp", "resnet50")
VARIANTS = ("torch-default", "torch-fused", OURS)
SHORTEST = 3  # steps, even where one takes longer than the limit
STATES = {"quiet": 0, "1 busy": 1, "2 busy": 2}
WARM_UP_S = 0.2  # the scheduler has then seen that these threads want a core
BLOCK = 500  # steps of which the largest is compared with the median
STEPS, QUICK_STEPS = 500, 40  # of ours in each state at least, over all rounds
LIMIT_S, QUICK_LIMIT_S = 1.0, 0.2  # of each series, longer for ours if need be
LONGEST_S = 60.0
SETTLE_S = 0.05  # the scheduler moves what runs to where there is room
# Plain arithmetic, no memory traffic, no library with threads; ends when whoever started it has gone.
SPIN = """
import os
parent, x = os.getppid(), 1
while os.getppid() == parent:
    for _ in range(100_000):
        x = (x * 1103515245 + 12345) & 0x7FFFFFFF
"""


def time_series(step: Call, count: int, at_least: float = 0.0, at_most: float = math.inf) -> list[float]:
    """Microseconds of each step of a series of `count` steps.

    It goes on for `at_least` seconds even so, since the scheduler does not share a core by microseconds, and no further
    step begins after `at_most`.
    """
    times: list[float] = []
    begin, passed = time.perf_counter(), 0.0
    while len(times) < SHORTEST or passed < at_least or (len(times) < count and passed < at_most):
        times.append(time_call(step))
        passed = time.perf_counter() - begin
    return times


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
    """The largest step over the median, within blocks of steps."""
    steps = [step for steps in rounds for step in steps]
    blocks = [steps[i : i + BLOCK] for i in range(0, max(1, len(steps) - BLOCK + 1), BLOCK)]
    return {"of": len(blocks[0]), "ratio": ratio([max(b) for b in blocks], [median(b) for b in blocks])}


def measure(model: str, rounds: int, quick: bool) -> list[dict[str, Any]]:
    """In each round every state in changing order, and in each state every variant in changing order."""
    arena, limit = Arena(MODELS[model], "adam"), QUICK_LIMIT_S if quick else LIMIT_S
    verdicts = arena.check(VARIANTS)
    calls = {variant: arena.step(variant) for variant in VARIANTS}
    least = -(-(QUICK_STEPS if quick else STEPS) // rounds)
    series: dict[tuple[str, str], list[list[float]]] = {key: [] for key in product(VARIANTS, STATES)}
    with Spinners(max(STATES.values())) as spinners:
        for i, state in enumerate(interleaved(STATES, rounds)):
            spinners.run(STATES[state])
            for variant in interleaved(VARIANTS, 1, seed=i):
                time_series(calls[variant], 0, WARM_UP_S)
                count, longest = (least, LONGEST_S) if variant == OURS else (0, limit)
                series[variant, state].append(time_series(calls[variant], count, limit, longest))
    return [
        {
            "variant": variant,
            "state": state,
            "time": spread([median(steps) for steps in of_rounds]),
            "mean": spread([fmean(steps) for steps in of_rounds]),
            "largest": largest(of_rounds),
            "correct": verdicts[variant].correct,
        }
        for (variant, state), of_rounds in series.items()
    ]


def tables(record: Record) -> Iterator[Table]:
    for model, results in record["results"].items():
        cells = {
            (r["variant"], f"{r['state']}, {what}"): number(found["median"]) if r["correct"] else "WRONG"
            for r in results
            for what, found in (("median", r["time"]), ("mean", r["mean"]), ("largest / median", r["largest"]["ratio"]))
        }
        yield Table.pivot(f"{model}, µs", cells)
    for model, results in record["threads"].items():
        cells = {(r["variant"], str(r["threads"])): number(r["time"]["median"]) for r in results}
        yield Table.pivot(f"{model}, µs with so many threads", cells)
    for model, results in record["fork"].items():
        threads = record["machine"]["threads"]
        rows = [[f"{r['variant']}, {r['way']}", str(r["child_threads"] or threads), outcome(r)] for r in results]
        yield Table([f"{model}, in a forked child", "threads", "time over the parent's"], rows)


def outcome(result: Record) -> str:
    """What became of a forked child."""
    if "failure" in result:
        return "hangs" if "hang" in result["failure"] else "fails"
    return f"{result['ratio']['median']:.2f} x" if result["correct"] else "WRONG"


def run(args: argparse.Namespace) -> Record:
    models, rounds = args.model or SHAPES, 1 if args.quick else 3
    record = {"results": {model: measure(model, args.rounds, args.quick) for model in models}}
    record["threads"] = {model: threads_of(model, rounds) for model in models}
    record["fork"] = {model: forks_of(model, rounds) for model in models}
    return record


main = question(__doc__, "busy", run, tables, {"--model": SHAPES}, rounds=(6, 2))
