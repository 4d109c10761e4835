"""The results of `pages.py` and their tables."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from benchmarks.memory.calls import CALLS
from benchmarks.memory.ways import BASELINE
from benchmarks.shared.measure import Spread, ratio
from benchmarks.shared.report import correct_text, make_table, number, spread_text
from benchmarks.shared.training import PHASES

Outcomes = Mapping[str, Sequence[Mapping[str, Any]]]  # by way, one per round


def way_result(outcomes: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One way as a JSON object: times in µs, page faults and µs of the system per iteration, ratios within rounds."""
    iterations = [outcome["iteration"] for outcome in outcomes]
    same = all(o["losses"] == baseline[0]["losses"] and o["checksum"] == baseline[0]["checksum"] for o in outcomes)
    return {
        "phases": {phase: asdict(Spread.of([o["phases"][phase] for o in outcomes])) for phase in PHASES},
        "iteration": asdict(Spread.of(iterations)),
        "ratio": asdict(ratio(iterations, [outcome["iteration"] for outcome in baseline])),
        "faults": {phase: statistics.median(o["faults"][phase] for o in outcomes) for phase in PHASES},
        "system": asdict(Spread.of([outcome["system"] for outcome in outcomes])),
        "peak_mib": max(outcome["peak_mib"] for outcome in outcomes),
        "kept": all(outcome["kept"] for outcome in outcomes),
        "correct": same,
    }


def training_result(training: str, outcomes: Outcomes) -> dict[str, Any]:
    """All ways of one training as a JSON object."""
    ways = {name: way_result(rounds, outcomes[BASELINE]) for name, rounds in outcomes.items()}
    return {"training": training, "losses": outcomes[BASELINE][0]["losses"], "ways": ways}


def training_table(result: Mapping[str, Any]) -> Table:
    """Times by phase, faults and size of every way."""
    columns = ("", *PHASES, "iteration", "/ first", "faults", "system", "MiB", "same")
    rows = [
        (
            name,
            *(number(way["phases"][phase]["median"]) for phase in PHASES),
            number(way["iteration"]["median"]),
            spread_text(Spread(**way["ratio"])),
            number(sum(way["faults"].values())),
            number(way["system"]["median"]),
            number(way["peak_mib"]),
            correct_text(way["correct"]),
        )
        for name, way in result["ways"].items()
    ]
    return make_table(f"{result['training']}, Adam: µs and page faults per iteration", columns, rows)


def summary_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """The time of an iteration in each way, as a share of the first."""
    names = [name for name in results[0]["ways"] if name != BASELINE]
    rows = [(name, *(f"{result['ways'][name]['ratio']['median']:.2f}" for result in results)) for name in names]
    columns = ("", *(result["training"] for result in results))
    return make_table(f"iteration / the same with {BASELINE}", columns, rows)


def calls_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """System calls per iteration."""
    rows = [
        (f"{training}, {name}", *(f"{way['calls'][call]:.2f}" for call in CALLS))
        for training, result in results.items()
        for name, way in result["ways"].items()
    ]
    return make_table("system calls per iteration", ("", *CALLS), rows)
