"""Times whole training loops, phase by phase, with torch's optimizers and with ours, and checks the result.

Per workload, optimizer and what follows the backward pass (`tails.py`), every variant trains the same model from the
same start on the same data. Rounds interleave the variants in changing order; in each round a variant trains twice from
the start, once with the clock read once per iteration (the column "loop") and once with it read after each phase. A
figure is the median over rounds of the median over iterations; a ratio is the median of the ratios within the rounds,
"step ratio" that of everything after the backward pass. Correctness is established in a run of its own, see
`correctness.py`.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

import torch

from benchmarks.loop.tables import case_table, score_lines, summary_table
from benchmarks.shared.chart import draw_loops
from benchmarks.shared.correctness import YARDSTICKS, TrainingCheck, Verdict
from benchmarks.shared.measure import Spread, clock_cost_us, clock_for, interleaved, ratio
from benchmarks.shared.options import add_names, begin, device, make_parser, positive
from benchmarks.shared.report import Claim, check_claims, claims_table, machine_line, make_progress, save_json
from benchmarks.shared.tails import PLAIN, TAILS
from benchmarks.shared.training import Timings, Trainer
from benchmarks.shared.variants import OURS, OURS_CALLS, RULES, VARIANTS, ZERO_GRAD_MODES, default_variants
from benchmarks.shared.workloads import WORKLOADS

CLAIMS = (
    Claim(("tutorial", "adam"), "torch-default", OURS, 1.8),
    Claim(("tutorial", "adam"), "torch-fused", OURS, 1.2),
    Claim(("tutorial-b1", "adam"), "torch-default", OURS, 3.3),
    Claim(("tutorial-b1", "adam"), "torch-fused", OURS, 1.35),
)
ROUNDS = 5
QUICK_ROUNDS, QUICK_ITERATIONS = 2, 6
TAIL_RULE = "adam"  # whose loops also have the other tails by default


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    lines = (f"  {name:12} {w.summary}; {w.iterations} iterations" for name, w in WORKLOADS.items())
    parser = make_parser(__doc__, "\n".join(("workloads:", *lines)))
    add_names(parser, "--workload", list(WORKLOADS), "what to train (default: all)")
    add_names(parser, "--optimizer", list(RULES), "with which optimizers (default: all)")
    add_names(
        parser, "--tail", list(TAILS), f"what follows the backward pass (default: all with {TAIL_RULE}, else plain)"
    )
    add_names(parser, "--variants", list(VARIANTS), "which implementations (default: all that differ)")
    parser.add_argument("--iterations", type=positive, help="length of a run (default: the workload's own)")
    parser.add_argument("--device", default="cpu", type=device, help="cpu, cuda or cuda:1 (default: cpu)")
    parser.add_argument(
        "--zero-grad",
        choices=ZERO_GRAD_MODES,
        default="separate",
        help="separate: zero_grad() at the start of the loop (default); to_zero, to_none: ours clears the "
        "gradients within step(), torch at the start of the loop in the same way",
    )
    args = parser.parse_args(arguments)
    if args.device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch {torch.__version__} sees no CUDA device here; use cpu")
    args.rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    args.iterations = args.iterations or (QUICK_ITERATIONS if args.quick else None)
    args.variants = args.variants or default_variants(args.device)
    return args


class Case:
    """One workload with one optimizer: what is to be run, and what came of it."""

    def __init__(self, workload: str, rule: str, args: argparse.Namespace, tail: str = PLAIN) -> None:
        self.name, self.rule, self.args, self.tail = workload, rule, args, tail
        self.workload = WORKLOADS[workload]
        self.iterations: int = args.iterations or self.workload.iterations
        names = [name for name in args.variants if tail != PLAIN or name != OURS_CALLS]  # there it would be ours
        self.trained = list(dict.fromkeys((*YARDSTICKS, *names)))
        self.timings = {name: Timings(tail) for name in names}

    @property
    def units(self) -> int:
        """Pieces of work, for the progress bar."""
        rounds: int = self.args.rounds
        return 1 + len(self.trained) + 2 * rounds * len(self.timings)

    def run(self, advance: Callable[[], object]) -> dict[str, Any]:
        """Checks correctness, takes the times, and returns the result as a JSON object.

        Args:
            advance: Called after each piece of work.
        """
        args, lr = self.args, self.workload.lr[self.rule]
        check = TrainingCheck(self.workload, self.rule, args.device, args.zero_grad, self.iterations, self.tail)
        advance()
        records = {}
        for name in self.trained:
            records[name] = check.train(name)
            advance()
        clock = clock_for(args.device)
        for name, by_phase in interleaved(list(product(self.timings, (False, True))), args.rounds):
            trainer = Trainer(check.task, VARIANTS[name], self.rule, lr, args.zero_grad, self.tail)
            self.timings[name].add(trainer, by_phase, self.iterations, clock)
            advance()
        verdicts = check.judge(records)
        return {
            "workload": self.name,
            "optimizer": self.rule,
            "tail": self.tail,
            "lr": lr,
            "iterations": self.iterations,
            "score_name": check.task.score_name,
            "variants": {name: self.figures(name, verdicts[name]) for name in self.timings},
        }

    def figures(self, name: str, verdict: Verdict) -> dict[str, Any]:
        """The figures of one variant: times in µs, ratios to ours, and what correctness rests on."""
        timings, ours = self.timings[name], self.timings.get(OURS)
        figures = {
            **asdict(verdict),
            "phases": {phase: asdict(Spread.of(times)) for phase, times in timings.phases.items()},
            "loop": asdict(Spread.of(timings.loop)),
        }
        if ours:
            figures["loop_ratio"] = asdict(ratio(timings.loop, ours.loop))
            figures["step_ratio"] = asdict(ratio(timings.around, ours.around))
        return figures


def make_cases(args: argparse.Namespace) -> list[Case]:
    """What is asked for."""
    return [
        Case(workload, rule, args, tail)
        for workload, rule, tail in product(args.workload or WORKLOADS, args.optimizer or RULES, TAILS)
        if (tail in args.tail if args.tail else tail == PLAIN or rule == TAIL_RULE)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; the exit status is 1 if a variant of ours trained wrongly."""
    args = parse(arguments)
    console, machine = begin(args, args.device)
    clock_cost = clock_cost_us(clock_for(args.device))
    console.print(f"clock: {clock_cost:.3f} µs a reading; times are medians in µs\n")

    cases = make_cases(args)
    settings = {"rounds": args.rounds, "zero_grad": args.zero_grad, "quick": args.quick}
    results: list[dict[str, Any]] = []
    record = {"machine": machine, "clock_cost_us": clock_cost, "settings": settings, "results": results}
    with make_progress(console) as progress:
        bar = progress.add_task("", total=sum(case.units for case in cases))
        for case in cases:
            progress.update(bar, description=f"{case.name}, {case.rule}, {case.tail}")
            results.append(case.run(lambda: progress.advance(bar)))
            console.print(case_table(results[-1]), *score_lines(results[-1]), "", sep="\n")
            save_json(args.output / "train_loop.json", record)  # so that an interrupted run leaves what it has

    measured = {(c.name, c.rule): {name: t.loop for name, t in c.timings.items()} for c in cases if c.tail == PLAIN}
    claims = check_claims(CLAIMS, measured)
    save_json(args.output / "train_loop.json", {**record, "claims": claims})
    for rule in args.optimizer or RULES:
        chosen = [result for result in results if result["optimizer"] == rule]
        title = f"{RULES[rule].class_name}: time of one training iteration (and its ratio to ours)"
        draw_loops(chosen, title, machine_line(machine), args.output / f"train_loop-{rule}.png")
    console.print(summary_table(results))
    if claims:
        console.print(claims_table(claims))
    console.print(f"results written to {args.output}")
    return int(any(not result["variants"].get(OURS, {"correct": True})["correct"] for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
