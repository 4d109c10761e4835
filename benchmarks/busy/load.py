"""Steps while other processes keep cores busy: the part "busy" of `busy.py`."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from statistics import fmean, median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.busy.spinners import Spinners
from benchmarks.shared.arena import Arena
from benchmarks.shared.measure import Spread, interleaved, ratio
from benchmarks.shared.report import Claim, check_claims, correct_text, make_table, spread_text
from benchmarks.shared.series import time_series
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import OURS

VARIANTS = ("torch-default", "torch-fused", OURS)
STATES = {"quiet": 0, "1 busy": 1, "2 busy": 2}
WARM_UP = 0.2  # seconds: the scheduler has then seen that these threads want a core
BLOCK = 500  # steps of which the largest is compared with the median
LARGEST, MIDDLE = "largest step of ours, 1 busy", "its median"

Series = Mapping[tuple[str, str], list[list[float]]]  # by variant and state, one list of steps per round


def name_of(variant: str, state: str) -> str:
    """What the steps of a variant in a state are called in claims."""
    return f"{variant}, {state}"


def mean_of(variant: str, state: str) -> str:
    """The same for their mean: what a loop has to wait for, the longest steps included."""
    return f"mean of {name_of(variant, state)}"


def claims_of(model: str) -> tuple[Claim, ...]:
    """What is aimed at."""
    case = (model, "adam")
    return (
        Claim(case, name_of("torch-fused", "1 busy"), name_of(OURS, "1 busy"), 5),
        Claim(case, mean_of("torch-fused", "1 busy"), mean_of(OURS, "1 busy"), 5),
        Claim(case, name_of(OURS, "1 busy"), name_of(OURS, "quiet"), 2.2, at_most=True),
        Claim(case, LARGEST, MIDDLE, 4, at_most=True),
    )


def measure(arena: Arena, args: argparse.Namespace) -> Series:
    """Rounds; in each, every state in changing order, and in each state every variant in changing order."""
    calls = {variant: arena.step(variant) for variant in VARIANTS}
    before = arena.write_grads if args.backward else None
    series: dict[tuple[str, str], list[list[float]]] = {key: [] for key in product(VARIANTS, STATES)}
    cores = sorted(os.sched_getaffinity(0)) if args.pin else ()
    with Spinners(max(STATES.values()), cores) as spinners:
        for i, state in enumerate(interleaved(list(STATES), args.rounds)):
            spinners.run(STATES[state])
            for variant in interleaved(list(VARIANTS), 1, seed=i):
                time_series(calls[variant], 0, WARM_UP, before=before)
                count, longest = (-(-args.steps // args.rounds), 60.0) if variant == OURS else (0, args.limit)
                series[variant, state].append(time_series(calls[variant], count, args.limit, longest, before))
    return series


def largest(rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The largest step over the median in each block of steps."""
    steps = [step for steps in rounds for step in steps]
    blocks = [steps[i : i + BLOCK] for i in range(0, max(1, len(steps) - BLOCK + 1), BLOCK)]
    return {"of": len(blocks[0]), "ratio": asdict(ratio([max(b) for b in blocks], [median(b) for b in blocks]))}


def load_part(model: str, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measures on the shapes of a model, prints the table, and returns the result as a JSON object."""
    arena = Arena(MODELS[model], "adam")
    verdicts = arena.check(VARIANTS)
    series = measure(arena, args)
    times = {key: [median(steps) for steps in rounds] for key, rounds in series.items()}
    means = {key: [fmean(steps) for steps in rounds] for key, rounds in series.items()}
    results = [
        {
            "variant": variant,
            "state": state,
            "time": asdict(Spread.of(times[variant, state])),
            "ratio": asdict(ratio(times[variant, state], times[OURS, state])),
            "mean": asdict(Spread.of(means[variant, state])),
            "mean_ratio": asdict(ratio(means[variant, state], means[OURS, state])),
            "slowdown": asdict(ratio(times[variant, state], times[variant, "quiet"])),
            "largest": largest(series[variant, state]),
            "correct": verdicts[variant].correct,
        }
        for variant, state in series
    ]
    named = {name_of(*key): rounds for key, rounds in times.items()}
    named |= {mean_of(*key): rounds for key, rounds in means.items()}
    tail = largest(series[OURS, "1 busy"])["ratio"]["median"]
    measured = {(model, "adam"): {**named, LARGEST: [tail], MIDDLE: [1.0]}}
    console.print(load_table(model, results))
    return {
        "results": results,
        "claims": check_claims(claims_of(model), measured),
        "good": verdicts[OURS].correct,
    }


def load_table(model: str, results: Sequence[Mapping[str, Any]]) -> Table:
    """A row per variant and state."""
    rows = [
        (
            f"{result['variant']}, {result['state']}",
            spread_text(Spread(**result["time"])),
            spread_text(Spread(**result["ratio"])),
            spread_text(Spread(**result["slowdown"])),
            spread_text(Spread(**result["mean"])),
            spread_text(Spread(**result["mean_ratio"])),
            f"{spread_text(Spread(**result['largest']['ratio']))} in {result['largest']['of']}",
            correct_text(result["correct"]),
        )
        for result in results
    ]
    columns = ("", "median, µs", "/ ours", "/ quiet", "mean, µs", "/ ours", "largest / median", "result")
    return make_table(f"{model}, Adam, beside busy processes", columns, rows)
