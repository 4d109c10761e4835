"""Steps while other processes keep cores busy: the part "busy" of `run.py`."""

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean, median
from typing import Any

from benchmarks.busy.series import time_series
from benchmarks.busy.spinners import Spinners
from benchmarks.shared.arena import Arena
from benchmarks.shared.measure import interleaved, ratio, spread
from benchmarks.shared.report import Claim, check_claims
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import OURS

VARIANTS = ("torch-default", "torch-fused", OURS)
STATES = {"quiet": 0, "1 busy": 1, "2 busy": 2}
WARM_UP = 0.2  # seconds: the scheduler has then seen that these threads want a core
BLOCK = 500  # steps of which the largest is compared with the median
LARGEST, MIDDLE = "largest step of ours, 1 busy", "its median"

Series = Mapping[tuple[str, str], list[list[float]]]  # by variant and state, one list of steps per round


def claims_of(model: str) -> tuple[Claim, ...]:
    """What is aimed at; the mean is what a loop has to wait for, the longest steps included."""
    case, ours, theirs = (model, "adam"), f"{OURS}, 1 busy", "torch-fused, 1 busy"
    return (
        Claim(case, theirs, ours, 5),
        Claim(case, f"mean of {theirs}", f"mean of {ours}", 5),
        Claim(case, ours, f"{OURS}, quiet", 2.2, at_most=True),
        Claim(case, LARGEST, MIDDLE, 4, at_most=True),
    )


def measure(arena: Arena, args: argparse.Namespace) -> Series:
    """Rounds; in each, every state in changing order, and in each state every variant in changing order."""
    calls = {variant: arena.step(variant) for variant in VARIANTS}
    series: dict[tuple[str, str], list[list[float]]] = {key: [] for key in product(VARIANTS, STATES)}
    with Spinners(max(STATES.values())) as spinners:
        for i, state in enumerate(interleaved(list(STATES), args.rounds)):
            spinners.run(STATES[state])
            for variant in interleaved(list(VARIANTS), 1, seed=i):
                time_series(calls[variant], 0, WARM_UP)
                count, longest = (-(-args.steps // args.rounds), 60.0) if variant == OURS else (0, args.limit)
                series[variant, state].append(time_series(calls[variant], count, args.limit, longest))
    return series


def largest(rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The largest step over the median in each block of steps."""
    steps = [step for steps in rounds for step in steps]
    blocks = [steps[i : i + BLOCK] for i in range(0, max(1, len(steps) - BLOCK + 1), BLOCK)]
    return {"of": len(blocks[0]), "ratio": ratio([max(b) for b in blocks], [median(b) for b in blocks])}


def load_part(model: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measures on the shapes of a model, and returns the result as a JSON object."""
    arena = Arena(MODELS[model], "adam")
    verdicts = arena.check(VARIANTS)
    series = measure(arena, args)
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
    named = {", ".join(key): rounds for key, rounds in times.items()}
    named |= {f"mean of {', '.join(key)}": rounds for key, rounds in means.items()}
    named |= {LARGEST: [largest(series[OURS, "1 busy"])["ratio"]["median"]], MIDDLE: [1.0]}
    claims = check_claims(claims_of(model), {(model, "adam"): named})
    return {"results": results, "claims": claims, "good": verdicts[OURS].correct}
