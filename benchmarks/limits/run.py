"""What share of the machine's own limit each step reaches, and how torch.compile's steps compare.

The limit is the time in which the same bytes are read and written with almost no arithmetic (`probe.cpp`), in the
fastest of several ways. Rules and dtypes are measured at a size that fits the second-level caches of the threads, one
that fits the third level, and GPT-2's shapes, which come from memory; beside them stand torch's fused steps and steps
that torch.compile has made. Everything is timed in the same rounds, on the same tensors.

GPT-2's steps are compiled for Adam and SGD with momentum in fp32 only, since each takes up to a minute, and so are
those of other known models. What the time does not last for is left out, and said.
"""

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console

from benchmarks.limits.cases import DTYPES, LABELS, TARGETS, Case, budgets, caches, make_cases
from benchmarks.limits.tables import claims_of, place_table, summary
from benchmarks.shared.arena import Arena
from benchmarks.shared.compiled import COMPILED, empty_cache
from benchmarks.shared.measure import Spread
from benchmarks.shared.options import add_names, begin, make_parser
from benchmarks.shared.report import make_progress, save_json
from benchmarks.shared.variants import OURS
from benchmarks.step.run import LIMIT, QUICK_ROUNDS, figures_of, measure

VARIANTS = (OURS, "torch-fused")
YARDSTICKS = ("torch-default",)
FINALISTS = 3  # ways of the limit that are timed in the rounds
SECONDS_PER_TENSOR = {"adam": 0.4, "sgd": 0.15}  # that compiling takes, to begin with; then as measured


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = make_parser(__doc__)
    add_names(parser, "--place", [*TARGETS, "shapes"], "which sizes (default: all)")
    add_names(parser, "--optimizer", list(LABELS), "which optimizers (default: all)")
    add_names(parser, "--dtype", list(DTYPES), "which dtypes (default: all)")
    parser.add_argument("--minutes", type=float, default=9.5, help="when to begin nothing more (default: 9.5)")
    parser.add_argument(
        "--compile",
        choices=("none", "default", "all"),
        default="default",
        help="which steps to compile: all takes half an hour more",
    )
    return parser.parse_args(arguments)


class Clerk:
    """Knows the time that is left, and what compiling takes.

    Args:
        minutes: How long the benchmark may take.
        compiles: As `--compile`.
    """

    def __init__(self, minutes: float, compiles: str) -> None:
        self.deadline = time.monotonic() + 60 * minutes
        self.compiles = compiles
        self.per_tensor = dict(SECONDS_PER_TENSOR)

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def wants(self, case: Case) -> bool:
        """Whether a case is to be compiled, if the time lasts."""
        few = len(case.model.shapes) == 1 or case.in_table_of_models
        return self.compiles == "all" or (self.compiles == "default" and few)

    def lasts(self, case: Case) -> bool:
        """Whether there is time left for compiling."""
        return self.per_tensor.get(case.rule, max(self.per_tensor.values())) * len(case.model.shapes) <= self.left()

    def note(self, case: Case, seconds: float) -> None:
        """Learns from the time that compiling took, where fixed costs do not count."""
        if (tensors := len(case.model.shapes)) >= 100:
            self.per_tensor[case.rule] = seconds / tensors


def run(case: Case, rounds: int, compiled: bool) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Measures one case.

    Returns:
        The result as a JSON object, and the microseconds of every variant.
    """
    arena = Arena(case.model, case.rule, DTYPES[case.dtype], case.stride, YARDSTICKS)
    names = (*VARIANTS, *([COMPILED] * compiled))
    verdicts = arena.check(names)
    probe = arena.probe(case.model.repeats)
    finalists = {f"{LIMIT} {i}": way for i, way in enumerate(probe.ranking[:FINALISTS])}
    calls: dict[str, Callable[[], object]] = {name: arena.step(name) for name in names}
    calls |= {name: probe.calls[way] for name, way in finalists.items()}
    times = measure(arena, calls, rounds, case.model.repeats)
    ways = {name: Spread.of(times[name]).median for name in finalists}
    fastest = min(ways, key=lambda name: ways[name])
    times = {name: times[name] for name in names} | {LIMIT: times[fastest]}
    result = {
        **{name: getattr(case, name) for name in ("place", "model_name", "rule", "dtype", "bytes", "held")},
        "tensors": len(case.model.shapes),
        "elements": case.model.elements,
        "rounds": rounds,
        "repeats": case.model.repeats,
        "variants": figures_of(times, verdicts, case.bytes),
        "limit": [{**asdict(finalists[name]), "time": median} for name, median in ways.items()],
    }
    if arena.compiled is not None:
        arena.compiled.require_one_graph()
        result["variants"][COMPILED]["compile_seconds"] = arena.compiled.seconds
    return result, times


def run_all(cases: Sequence[Case], clerk: Clerk, args: argparse.Namespace, console: Console, record: Any) -> None:
    """Measures the cases that the time lasts for; saves after each, and shows a table when a place is done."""
    with empty_cache(), make_progress(console) as progress:
        bar = progress.add_task("", total=len(cases))
        for i, case in enumerate(cases):
            progress.update(bar, description=", ".join(case.key))
            wanted = clerk.wants(case)
            compiled = wanted and clerk.lasts(case)
            if clerk.left() <= 0 or (case.place == "shapes" and not compiled):
                record["left_out"].append(case.key)
            else:
                if wanted and not compiled:
                    record["left_out"].append((*case.key, COMPILED))
                rounds = args.rounds or (QUICK_ROUNDS if args.quick else case.model.rounds)
                result, times = run(case, rounds, compiled)
                record["results"].append(result)
                record["claims"] += claims_of(case, times)
                if compiled:
                    clerk.note(case, result["variants"][COMPILED]["compile_seconds"])
                gc.collect()
            save_json(args.output / "limits.json", record)
            if case.place != (cases[i + 1].place if i + 1 < len(cases) else None):
                console.print(place_table(case.place, record["results"]))
            progress.advance(bar)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; the exit status is 1 if a step of ours was wrong."""
    args = parse(arguments)
    console, machine = begin(args)
    clerk = Clerk(args.minutes, args.compile)
    found = caches(torch.get_num_threads())
    cases = [
        case
        for case in make_cases(budgets(found))
        if case.place in (args.place or case.place)
        and case.rule in (args.optimizer or case.rule)
        and case.dtype in (args.dtype or case.dtype)
        and (case.place != "shapes" or args.compile != "none")
    ]
    sizes = ", ".join(f"{level} {size >> 20} MiB" for level, size in sorted(found.items()))
    console.print(f"caches of {machine['threads']} threads: {sizes}\n")
    settings = {"quick": args.quick, "rounds": args.rounds, "compile": args.compile}
    record: dict[str, Any] = {"machine": machine, "settings": settings, "caches": found}
    record |= {"results": [], "claims": [], "left_out": []}
    run_all(cases, clerk, args, console, record)
    console.print(*summary(record), sep="\n")
    console.print(f"results written to {args.output}")
    return int(any(not result["variants"][OURS]["correct"] for result in record["results"]))


if __name__ == "__main__":
    raise SystemExit(main())
