"""The tables of `train_loop.py`, from its results."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from benchmarks.shared.measure import Spread
from benchmarks.shared.report import correct_text, make_table, number, spread_text
from benchmarks.shared.tails import PLAIN
from benchmarks.shared.variants import OURS, RULES

Result = Mapping[str, Any]


def ratio_text(figures: Mapping[str, Any], key: str) -> str:
    """A ratio to ours, if ours was measured."""
    return spread_text(Spread(**figures[key])) if key in figures else "-"


def case_label(result: Result) -> str:
    """What a row is called: the workload or model, the optimizer, and the tail if it is more than the step."""
    names = result.get("workload") or result["model"], RULES[result["optimizer"]].class_name, result.get("tail", PLAIN)
    return ", ".join(name for name in names if name != PLAIN)


def case_table(result: Result) -> Table:
    """Times per phase, ratios to ours and correctness of every variant; "step ratio" is of all after the backward."""
    phases = list(next(iter(result["variants"].values()))["phases"])
    columns = ("", *phases, "loop", "loop ratio", "step ratio", "error", "result")
    rows = (
        (
            f"[bold]{name}[/]" if name == OURS else name,
            *(number(figures["phases"][phase]["median"]) for phase in phases),
            spread_text(Spread(**figures["loop"])),
            ratio_text(figures, "loop_ratio"),
            ratio_text(figures, "step_ratio"),
            f"{figures['rounding']['overall']:.1e}",
            correct_text(figures["correct"]),
        )
        for name, figures in result["variants"].items()
    )
    return make_table(f"{case_label(result)}, {result['iterations']} iterations", columns, rows)


def score_lines(result: Result) -> Iterable[str]:
    """Losses on the way and the score at the end: one line per distinct outcome."""
    outcomes: dict[str, list[str]] = {}
    for name, figures in result["variants"].items():
        losses = ", ".join(f"{step}: {loss:.5g}" for step, loss in figures["losses"].items())
        text = f"loss at {losses}; {result['score_name']} {figures['score']:.5g}"
        outcomes.setdefault(text, []).append(name)
    return [f"[dim]{', '.join(names)}: {text}[/]" for text, names in outcomes.items()]


def summary_table(results: Sequence[Result]) -> Table:
    """One line per workload and optimizer: how much longer the loop takes with each variant of torch."""
    others = [name for name in dict.fromkeys(name for r in results for name in r["variants"]) if name != OURS]
    rows = (
        (
            case_label(result),
            *(ratio_text(result["variants"].get(name, {}), "loop_ratio") for name in others),
            correct_text(all(figures["correct"] for figures in result["variants"].values())),
        )
        for result in results
    )
    columns = ("whole loop, times ours", *others, "results")
    return make_table("summary", columns, rows)
