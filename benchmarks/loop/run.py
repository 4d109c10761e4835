"""How long do whole training loops take with torch's optimizers and with ours, phase by phase, and are they correct?

Per workload, optimizer and what follows the backward pass (`shared/tails.py`), every variant trains the same model from
the same start on the same data, in turn (`shared/timed_training.py`), and is checked in runs of its own
(`shared/training.py`). "step ratio" is that of everything after the backward pass. On a machine whose processors others
use, a loop may take 200 times as long: what --seconds and --minutes leave no time for is left out, and listed.

Output: a table a case, `train_loop.json`; `python -m benchmarks publish` makes charts and the tables of the README.
Exit status 1 if a variant of ours trained wrongly.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from benchmarks.shared.files import Record
from benchmarks.shared.measure import CPU_CLOCK
from benchmarks.shared.options import Parser, positive, question
from benchmarks.shared.report import Table, correct_text, each, is_wrong, make_console, result_text, spread_text
from benchmarks.shared.tails import PLAIN, TAILS
from benchmarks.shared.timed_training import TimedTraining
from benchmarks.shared.variants import ALL, ALL_RULES, DISTINCT, MORE_RULES, OURS, RULES, VARIANTS, chosen
from benchmarks.shared.workloads import WORKLOADS

QUICK_ITERATIONS = 6
SECONDS = 4.0  # of a run; on a quiet machine the longest takes a third of that
TAIL_RULE = "adam"  # whose loops also have the other tails by default


def add_options(parser: Parser) -> None:
    parser.add_names("--tail", TAILS, f"what follows the backward pass (default: all with {TAIL_RULE}, else plain)")
    parser.add_names("--optimizer", (*RULES, *MORE_RULES, ALL), f"which (default: {' '.join(RULES)})")
    parser.add_names("--variants", VARIANTS, "which implementations (default: all that differ)")
    parser.add_argument("--iterations", type=positive, help="length of a run (default: the workload's own)")
    parser.add_limit("--seconds", SECONDS, 0.5, "the longest that a run may take")
    parser.add_limit("--minutes", 45.0, 8.0, "when to begin nothing more")


def make_cases(args: argparse.Namespace) -> list[TimedTraining]:
    names, length = args.variants or DISTINCT, args.iterations or (QUICK_ITERATIONS if args.quick else None)
    return [
        TimedTraining(workload, rule, names, args.rounds, length, tail, seconds=args.seconds)
        for workload, rule, tail in product(args.workload or WORKLOADS, chosen(args.optimizer, RULES), TAILS)
        if (tail in args.tail if args.tail else tail == PLAIN or rule == TAIL_RULE)
    ]


def label(case: TimedTraining) -> str:
    return f"{case.name}, {case.rule}, {case.tail}"


def case_label(result: Record) -> str:
    """The first cell of a row: the workload, the optimizer, and the tail if it is more than the step."""
    names = result["workload"], ALL_RULES[result["optimizer"]].class_name, result.get("tail", PLAIN)
    return ", ".join(name for name in names if name != PLAIN)


def case_table(result: Record) -> Table:
    """Times per phase, ratios to ours and correctness of every variant; "step ratio" is of all after the backward."""
    phases = next(iter(result["variants"].values()))["phases"]
    columns = {phase: f"phases.{phase}.median" for phase in phases} | {
        "loop": "loop",
        "loop ratio": "loop_ratio",
        "step ratio": "step_ratio",
        "error": "rounding.overall",
        "result": result_text,
    }
    title = f"{case_label(result)}, {result['iterations']} iterations"
    return Table.of(columns, result["variants"], title, ours=OURS)


def summary_table(results: Sequence[Record]) -> Table:
    others = [name for name in dict.fromkeys(name for r in results for name in r["variants"]) if name != OURS]
    rows = []
    for result in results:
        ratios = (spread_text(result["variants"].get(name, {}).get("loop_ratio")) for name in others)
        known = None not in {figures["correct"] for figures in result["variants"].values()}
        rows.append((case_label(result), *ratios, correct_text(False if is_wrong(result) else known or None)))
    return Table(("whole loop, times ours", *others, "results"), rows, "summary")


def measure(args: argparse.Namespace) -> Iterator[Record]:
    console, end = make_console(), time.monotonic() + 60 * args.minutes
    cost = statistics.median(CPU_CLOCK.between([CPU_CLOCK.mark() for _ in range(2000)]))
    console.print(f"clock: {cost:.3f} µs a reading; times are medians in µs\n")
    results: list[dict[str, Any]] = []
    record: dict[str, Any] = {"clock_cost_us": cost, "results": results, "left_out": []}

    def show_first(result: Any) -> None:
        if not results:
            console.print("[dim]after the first round:[/]", case_table(result).rich())

    for case in each(make_cases(args), label):
        if time.monotonic() > end:
            record["left_out"].append(f"{label(case)}, for want of time (--minutes)")
        else:
            results.append(case.run(show_first))
            console.print(case_table(results[-1]).rich())
        yield record


def tables(record: Record) -> Iterator[Table]:
    yield summary_table(record["results"])


workloads = "\n".join(f"  {name:12} {w.summary}; {w.iterations} iterations" for name, w in WORKLOADS.items())
main = question(
    __doc__, "train_loop", measure, tables, {"--workload": WORKLOADS}, add_options,
    epilog=f"workloads:\n{workloads}", rounds=(5, 2),
)  # fmt: skip
