"""Compares the step alone, variant against variant, on the parameter shapes of known models.

All variants and the streaming limit (the same memory traffic with almost no arithmetic, `probe.cpp`) are timed
once per round, in changing order, on the same tensors; a ratio is the median of the ratios within the rounds.
The claims of the documentation about the step are checked against these ratios.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

from rich.table import Table

from benchmarks.shared.arena import OURS_TO_ZERO, STEP_VARIANTS, Arena, StepVerdict
from benchmarks.shared.measure import CpuClock, Spread, interleaved, ratio, time_call
from benchmarks.shared.options import add_names, begin, make_parser
from benchmarks.shared.report import (
    Case,
    Claim,
    Times,
    check_claims,
    claims_table,
    correct_text,
    make_progress,
    make_table,
    number,
    save_json,
    spread_text,
)
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import OURS, RULES

LIMIT = "streaming limit"
WARM_UP = 3
QUICK_ROUNDS = 5
CLAIMS = (
    Claim(("400x64", "adam"), "torch-fused", OURS, 10),
    Claim(("tutorial-mlp", "adam"), "torch-fused", OURS, 1.7),
    Claim(("tutorial-mlp", "adam"), "torch-default", OURS, 6),
    Claim(("resnet50", "adam"), "torch-fused", OURS, 1.12),
    Claim(("resnet50", "sgd"), "torch-fused", OURS, 1.4),
    Claim(("gpt2", "adam"), LIMIT, OURS, 0.95),
    Claim(("gpt2", "adam"), OURS_TO_ZERO, OURS, 1.05, at_most=True),
)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    lines = (f"  {name:12} {len(m.shapes):3} tensors, {m.elements:,} elements" for name, m in MODELS.items())
    parser = make_parser(__doc__, "\n".join(("models:", *lines)))
    add_names(parser, "--model", list(MODELS), "which shapes (default: all)")
    add_names(parser, "--optimizer", list(RULES), "which optimizers (default: adam sgd)")
    add_names(parser, "--variants", STEP_VARIANTS, "which implementations (default: all)")
    parser.add_argument(
        "--repeats",
        type=int,
        help="calls in a row per measurement, sharing the caches between them (default: 10 or 20 for small models, "
        "1 for large; 1 shows each step as a training loop meets it, with none of its data in the nearest cache)",
    )
    return parser.parse_args(arguments)


def measure(
    arena: Arena,
    calls: Mapping[str, Callable[[], object]],
    rounds: int | Mapping[str, int],
    repeats: int,
    warm_up: int = WARM_UP,
) -> dict[str, list[float]]:
    """Microseconds of each call, one figure per round."""
    clock = CpuClock()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(warm_up):
            arena.write_grads()
            call()
    for name in interleaved(list(calls), rounds):
        arena.write_grads()
        times[name].append(time_call(calls[name], clock, repeats))
    return times


def figures_of(times: Times, verdicts: Mapping[str, StepVerdict], moved: int) -> dict[str, Any]:
    """Times in microseconds, ratios and verdicts of every variant as a JSON object; a step moves `moved` bytes."""
    variants: dict[str, Any] = {}
    for name, values in times.items():
        variants[name] = {
            "time": asdict(Spread.of(values)),
            "gb_per_s": moved / Spread.of(values).median / 1e3,
            "limit_share": asdict(ratio(times[LIMIT], values)),
        }
        if name in verdicts:
            variants[name] |= asdict(verdicts[name])
        if OURS in times:
            variants[name]["ratio"] = asdict(ratio(values, times[OURS]))
    return variants


def result_of(case: Case, times: Times, verdicts: Mapping[str, StepVerdict]) -> dict[str, Any]:
    """The result of one case as a JSON object."""
    moved = MODELS[case[0]].elements * RULES[case[1]].bytes_per_element
    return {"model": case[0], "optimizer": case[1], "bytes": moved, "variants": figures_of(times, verdicts, moved)}


def result_table(result: Mapping[str, Any]) -> Table:
    """Time, bandwidth, ratio to ours and correctness of every variant."""
    rows = []
    for name, figures in result["variants"].items():
        rows.append(
            (
                f"[bold]{name}[/]" if name == OURS else name,
                spread_text(Spread(**figures["time"])),
                spread_text(Spread(**figures["ratio"])) if "ratio" in figures else "-",
                number(figures["gb_per_s"]),
                spread_text(Spread(**figures["limit_share"])),
                f"{figures['error']['overall']:.1e}" if "error" in figures else "",
                correct_text(figures["correct"]) if "correct" in figures else "",
            )
        )
    title = f"{result['model']}, {RULES[result['optimizer']].class_name}, {result['bytes'] / 1e6:,.1f} MB a step"
    return make_table(title, ("", "time, µs", "ratio", "GB/s", "of the limit", "error", "result"), rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison; the exit status is 1 if a step of ours was wrong."""
    args = parse(arguments)
    console, machine = begin(args)
    cases = list(product(args.model or MODELS, args.optimizer or ("adam", "sgd")))
    names = args.variants or STEP_VARIANTS
    measured: dict[Case, dict[str, list[float]]] = {}
    results = []
    with make_progress(console) as progress:
        bar = progress.add_task("", total=len(cases))
        for case in cases:
            progress.update(bar, description=", ".join(case))
            model = MODELS[case[0]]
            arena = Arena(model, case[1])
            verdicts = arena.check(names)
            repeats = args.repeats or model.repeats
            calls = {name: arena.step(name) for name in names} | {LIMIT: arena.probe(repeats)}
            rounds = args.rounds or (QUICK_ROUNDS if args.quick else model.rounds)
            measured[case] = measure(arena, calls, rounds, repeats)
            results.append(result_of(case, measured[case], verdicts))
            console.print(result_table(results[-1]))
            progress.advance(bar)
    claims = check_claims(CLAIMS, measured)
    record = {"machine": machine, "settings": {"rounds": args.rounds, "repeats": args.repeats, "quick": args.quick}}
    save_json(args.output / "compare_step.json", {**record, "results": results, "claims": claims})
    if claims:
        console.print(claims_table(claims))
    console.print(f"results written to {args.output}")
    variants = (item for result in results for item in result["variants"].items())
    return int(any(not figures.get("correct", True) for name, figures in variants if name.startswith(OURS)))


if __name__ == "__main__":
    raise SystemExit(main())
