"""How long does the step alone take, variant against variant, on the parameter shapes of known models?

All variants and the streaming limit (the same memory traffic with almost no arithmetic, `shared/probe.cpp`) are timed
once per round, in changing order, on the same tensors; a ratio is the median of the ratios within the rounds. Small
models are timed over several steps in a row, since a single step of microseconds would mostly measure what the variant
before it has left in the caches: `--repeats 1` measures that. A variant that takes longer than --seconds on a model is
in no further round there, and its row says so. The claims of the documentation are checked against the ratios.

Output: a table a case, `compare_step.json`; exit status 1 if a step of ours was wrong.
"""

import argparse
from collections.abc import Sequence
from itertools import product
from typing import Any

from benchmarks.shared.arena import OURS_TO_ZERO, STEP_VARIANTS, Arena, figures_of
from benchmarks.shared.measure import time_rounds
from benchmarks.shared.options import Parser, begin, positive, seconds
from benchmarks.shared.report import (
    Case,
    Claim,
    Record,
    Table,
    bold,
    check_claims,
    claims_table,
    make_progress,
    number,
    result_text,
    save_json,
    spread_text,
    unfinished,
)
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import LIMIT, OURS, RULES

WARM_UP = 3
SECONDS, QUICK_SECONDS = 40.0, 1.0  # of one variant on one model; on a quiet machine the longest takes 18
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
    parser = Parser(__doc__, "\n".join(("models:", *lines)), rounds=(None, 5))
    parser.add_names("--model", MODELS, "which shapes (default: all)")
    parser.add_names("--optimizer", RULES, "which optimizers (default: adam sgd)")
    parser.add_names("--variants", STEP_VARIANTS, "which implementations (default: all)")
    parser.add_argument("--seconds", type=seconds, help=f"of a variant's steps on one model (default: {SECONDS:g})")
    parser.add_argument(
        "--repeats",
        type=positive,
        help="calls in a row per measurement, sharing the caches between them (default: 10 or 20 for small models, "
        "1 for large; 1 shows each step as a training loop meets it, with none of its data in the nearest cache)",
    )
    args = parser.parse(arguments)
    args.seconds = args.seconds or (QUICK_SECONDS if args.quick else SECONDS)
    return args


def measure(case: Case, args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """The result of a case as a JSON object, and the microseconds of every variant."""
    model, rule = MODELS[case[0]], RULES[case[1]]
    arena, names = Arena(model, case[1]), args.variants or STEP_VARIANTS
    verdicts = arena.check(names)
    repeats, rounds = args.repeats or model.repeats, args.rounds or model.rounds
    calls = {name: arena.step(name) for name in names} | {LIMIT: arena.probe(repeats)}
    times = time_rounds(calls, rounds, repeats, before=arena.write_grads, warm_up=WARM_UP, seconds=args.seconds)
    moved = model.elements * rule.bytes_per_element
    figures = figures_of(times, verdicts, moved)
    for name, values in times.items():
        figures[name] |= unfinished(len(values), rounds)
    return {"model": case[0], "optimizer": case[1], "bytes": moved, "variants": figures}, times


def result_table(result: Record) -> Table:
    """Time, bandwidth, ratio to ours and correctness of every variant."""
    rows = (
        (
            bold(name, name == OURS),
            spread_text(figures["time"]),
            spread_text(figures.get("ratio")),
            number(figures["gb_per_s"]),
            spread_text(figures["limit_share"]),
            f"{figures['error']['overall']:.1e}" if "error" in figures else "",
            result_text(figures),
        )
        for name, figures in result["variants"].items()
    )
    title = f"{result['model']}, {RULES[result['optimizer']].class_name}, {result['bytes'] / 1e6:,.1f} MB a step"
    return Table(("", "time, µs", "ratio", "GB/s", "of the limit", "error", "result"), rows, title)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison; the exit status is 1 if a step of ours was wrong."""
    args = parse(arguments)
    console, machine = begin(args)
    cases = list(product(args.model or MODELS, args.optimizer or ("adam", "sgd")))
    measured, results = {}, []
    with make_progress(console) as progress:
        bar = progress.add_task("", total=len(cases))
        for case in cases:
            progress.update(bar, description=", ".join(case))
            result, measured[case] = measure(case, args)
            results.append(result)
            console.print(result_table(result).rich())
            progress.advance(bar)
    claims = check_claims(CLAIMS, measured)
    record = {"machine": machine, "settings": {"rounds": args.rounds, "repeats": args.repeats, "quick": args.quick}}
    save_json(args.output / "compare_step.json", {**record, "results": results, "claims": claims})
    if claims:
        console.print(claims_table(claims).rich())
    ours = (v for result in results for name, v in result["variants"].items() if name.startswith(OURS))
    return int(any(figures["correct"] is False for figures in ours))
