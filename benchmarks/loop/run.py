"""How long do whole training loops take with torch's optimizers and with ours, phase by phase, and are they correct?

Per workload, optimizer and what follows the backward pass (`shared/tails.py`), every variant trains the same model from
the same start on the same data, in turn (`shared/timed_training.py`), and is checked in runs of its own
(`shared/training.py`). "step ratio" is that of everything after the backward pass. On a machine whose processors others
use, a loop may take 200 times as long: what --seconds and --minutes do not last for is left out, and said.

Output: a table a case, `train_loop.json`; `python -m benchmarks publish` makes charts and the tables of the README.
Exit status 1 if a variant of ours trained wrongly.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch

from benchmarks.shared.measure import clock_for
from benchmarks.shared.options import Parser, begin, positive, seconds
from benchmarks.shared.report import (
    Claim,
    Record,
    Table,
    bold,
    check_claims,
    claims_table,
    correct_text,
    is_wrong,
    make_progress,
    number,
    result_text,
    save_json,
    spread_text,
)
from benchmarks.shared.tails import PLAIN, TAILS
from benchmarks.shared.timed_training import TimedTraining
from benchmarks.shared.variants import OURS, RULES, VARIANTS, ZERO_GRAD_MODES, default_variants
from benchmarks.shared.workloads import WORKLOADS

CLAIMS = (
    Claim(("tutorial", "adam"), "torch-default", OURS, 1.8),
    Claim(("tutorial", "adam"), "torch-fused", OURS, 1.2),
    Claim(("tutorial-b1", "adam"), "torch-default", OURS, 3.3),
    Claim(("tutorial-b1", "adam"), "torch-fused", OURS, 1.35),
)
QUICK_ITERATIONS = 6
SECONDS, QUICK_SECONDS = 4.0, 0.5  # of a run; on a quiet machine the longest takes a third of that
MINUTES, QUICK_MINUTES = 45.0, 8.0
TAIL_RULE = "adam"  # whose loops also have the other tails by default


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    lines = (f"  {name:12} {w.summary}; {w.iterations} iterations" for name, w in WORKLOADS.items())
    parser = Parser(__doc__, "\n".join(("workloads:", *lines)), rounds=(5, 2))
    parser.add_names("--workload", WORKLOADS, "what to train (default: all)")
    parser.add_names("--optimizer", RULES, "with which optimizers (default: all)")
    parser.add_names("--tail", TAILS, f"what follows the backward pass (default: all with {TAIL_RULE}, else plain)")
    parser.add_names("--variants", VARIANTS, "which implementations (default: all that differ)")
    parser.add_argument("--iterations", type=positive, help="length of a run (default: the workload's own)")
    parser.add_argument("--seconds", type=seconds, help=f"the longest that a run may take (default: {SECONDS:g})")
    parser.add_argument("--minutes", type=seconds, help=f"when to begin nothing more (default: {MINUTES:g})")
    parser.add_argument("--device", default="cpu", type=torch.device, help="cpu, cuda or cuda:1 (default: cpu)")
    parser.add_argument(
        "--zero-grad",
        choices=ZERO_GRAD_MODES,
        default="separate",
        help="separate: zero_grad() at the start of the loop (default); to_zero, to_none: ours clears the "
        "gradients within step(), torch at the start of the loop in the same way",
    )
    args = parser.parse(arguments)
    if args.device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch {torch.__version__} sees no CUDA device here; use cpu")
    args.iterations = args.iterations or (QUICK_ITERATIONS if args.quick else None)
    args.seconds = args.seconds or (QUICK_SECONDS if args.quick else SECONDS)
    args.minutes = args.minutes or (QUICK_MINUTES if args.quick else MINUTES)
    args.variants = args.variants or default_variants(args.device)
    return args


def make_cases(args: argparse.Namespace) -> list[TimedTraining]:
    """What is asked for."""
    how = {"zero_grad": args.zero_grad, "device": args.device, "seconds": args.seconds}
    return [
        TimedTraining(workload, rule, args.variants, args.rounds, args.iterations, tail, **how)
        for workload, rule, tail in product(args.workload or WORKLOADS, args.optimizer or RULES, TAILS)
        if (tail in args.tail if args.tail else tail == PLAIN or rule == TAIL_RULE)
    ]


def case_label(result: Record) -> str:
    """What a row is called: the workload, the optimizer, and the tail if it is more than the step."""
    names = result["workload"], RULES[result["optimizer"]].class_name, result.get("tail", PLAIN)
    return ", ".join(name for name in names if name != PLAIN)


def case_table(result: Record) -> Table:
    """Times per phase, ratios to ours and correctness of every variant; "step ratio" is of all after the backward."""
    phases = list(next(iter(result["variants"].values()))["phases"])
    rows = (
        (
            bold(name, name == OURS),
            *(number(figures["phases"][phase]["median"]) for phase in phases),
            spread_text(figures["loop"]),
            spread_text(figures.get("loop_ratio")),
            spread_text(figures.get("step_ratio")),
            f"{figures['rounding']['overall']:.1e}" if "rounding" in figures else "-",
            result_text(figures),
        )
        for name, figures in result["variants"].items()
    )
    header = ("", *phases, "loop", "loop ratio", "step ratio", "error", "result")
    return Table(header, rows, f"{case_label(result)}, {result['iterations']} iterations")


def score_lines(result: Record) -> list[str]:
    """Losses on the way and the score at the end: one line per distinct outcome."""
    outcomes: dict[str, list[str]] = {}
    for name, figures in result["variants"].items():
        if "losses" in figures:
            losses = ", ".join(f"{step}: {loss:.5g}" for step, loss in figures["losses"].items())
            text = f"loss at {losses}; {result['score_name']} {figures['score']:.5g}"
            outcomes.setdefault(text, []).append(name)
    return [f"[dim]{', '.join(names)}: {text}[/]" for text, names in outcomes.items()]


def summary_table(results: Sequence[Record]) -> Table:
    """One line per workload and optimizer: how much longer the loop takes with each variant of torch."""
    others = [name for name in dict.fromkeys(name for r in results for name in r["variants"]) if name != OURS]
    rows = (
        (
            case_label(result),
            *(spread_text(result["variants"].get(name, {}).get("loop_ratio")) for name in others),
            correct_text(
                not is_wrong(result) and (None not in {v["correct"] for v in result["variants"].values()} or None)
            ),
        )
        for result in results
    )
    return Table(("whole loop, times ours", *others, "results"), rows, "summary")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; the exit status is 1 if a variant of ours trained wrongly."""
    args = parse(arguments)
    end = time.monotonic() + 60 * args.minutes
    console, machine = begin(args, args.device)
    clock = clock_for(args.device)
    cost = statistics.median(clock.between([clock.mark() for _ in range(2000)]))
    console.print(f"clock: {cost:.3f} µs a reading; times are medians in µs\n")

    cases = make_cases(args)
    settings = {"rounds": args.rounds, "zero_grad": args.zero_grad, "quick": args.quick}
    results: list[dict[str, Any]] = []
    left_out: list[str] = []
    record: dict[str, Any] = {"machine": machine, "clock_cost_us": cost, "settings": settings, "results": results}
    record["left_out"] = left_out

    def show_first(result: Any) -> None:
        if not results:
            console.print("[dim]after the first round:[/]", case_table(result).rich())

    with make_progress(console) as progress:
        bar = progress.add_task("", total=sum(case.units for case in cases))
        for case in cases:
            label = f"{case.name}, {case.rule}, {case.tail}"
            progress.update(bar, description=label)
            if time.monotonic() > end:
                left_out.append(label)
                continue
            results.append(case.run(lambda: progress.advance(bar), show_first))
            console.print(case_table(results[-1]).rich(), *score_lines(results[-1]), "", sep="\n")
            save_json(args.output / "train_loop.json", record)  # so that an interrupted run leaves what it has

    measured = {(c.name, c.rule): {n: t.loop for n, t in c.timings.items() if t.loop} for c in cases if c.tail == PLAIN}
    claims = record["claims"] = check_claims(CLAIMS, measured)
    save_json(args.output / "train_loop.json", record)
    console.print(summary_table(results).rich())
    for label in left_out:
        console.print(f"left out, as the time did not last (--minutes): {label}")
    if claims:
        console.print(claims_table(claims).rich())
    return int(any(result["variants"].get(OURS, {}).get("correct") is False for result in results))
