"""What share of the machine's own limit does each step reach, and how do torch.compile's steps compare?

The limit is the time in which the same bytes are read and written with almost no arithmetic (`shared/probe.cpp`), in
the fastest of several ways. Rules and dtypes are measured at a size that fits the second-level caches of the threads,
one that fits the third level, and GPT-2's shapes, which come from memory; beside them stand torch's fused steps and
steps that torch.compile has made. Everything is timed in the same rounds, on the same tensors.

GPT-2's steps are compiled for Adam and SGD with momentum in fp32 only, since each takes up to a minute, and so are
those of other known models. What the time does not last for is left out, and said.

Output: a table for each place, `limits.json`; exit status 1 if a step of ours was wrong.
"""

import argparse
import gc
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console

from benchmarks.limits.cases import MIB, TARGETS, Case, budgets, caches, make_cases
from benchmarks.shared import options, report
from benchmarks.shared.arena import Arena, figures_of
from benchmarks.shared.compiled import COMPILED, empty_cache
from benchmarks.shared.measure import Call, spread, time_rounds
from benchmarks.shared.report import Claim, Record, Table, Times, time_and_ratio
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import DTYPES, LABELS, LIMIT, OURS

VARIANTS = (OURS, "torch-fused")
YARDSTICKS = ("torch-default",)
FINALISTS = 3  # ways of the limit that are timed in the rounds
SECONDS_PER_TENSOR = {"adam": 0.4, "sgd": 0.15}  # that compiling takes, to begin with; then as measured
SECONDS = 20.0  # of one variant in one case; on a quiet machine the longest takes 2
NEVER_SLOWER = 1.0  # than a compiled step, as the ratio of its time to ours
TITLES = {
    "L2": "in the second-level caches",
    "L3": "in the third-level cache",
    "memory": "from memory",
    "shapes": "shapes of known models",
}


class Clerk:
    """Knows the time that is left, and what compiling takes; `compiles` is as `--compile`."""

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


def claims_of(case: Case, times: Times) -> list[dict[str, Any]]:
    """Targets beside what was reached: a share of the limit, and no compiled step that takes less time."""
    claims = [Claim(case.key, LIMIT, OURS, TARGETS[case.place])] if case.place in TARGETS else []
    return report.check_claims([*claims, Claim(case.key, COMPILED, OURS, NEVER_SLOWER)], {case.key: times})


def run(case: Case, rounds: int, compiled: bool) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """The result of one case as a JSON object, and the microseconds of every variant."""
    arena = Arena(case.model, case.rule, DTYPES[case.dtype], case.stride, YARDSTICKS)
    names = (*VARIANTS, *([COMPILED] * compiled))
    verdicts = arena.check(names)
    probe = arena.probe(case.model.repeats)
    finalists = {f"{LIMIT} {i}": way for i, way in enumerate(probe.ranking[:FINALISTS])}
    calls: dict[str, Call] = {name: arena.step(name) for name in names}
    calls |= {name: probe.calls[way] for name, way in finalists.items()}
    times = time_rounds(calls, rounds, case.model.repeats, before=arena.write_grads, warm_up=3, seconds=SECONDS)
    ways = {name: spread(times[name])["median"] for name in finalists}
    times = {name: times[name] for name in names} | {LIMIT: times[min(ways, key=lambda name: ways[name])]}
    result: dict[str, Any] = {
        **{name: getattr(case, name) for name in ("place", "model_name", "rule", "dtype", "bytes", "held")},
        "tensors": len(case.model.shapes),
        "elements": case.model.elements,
        "rounds": rounds,
        "repeats": case.model.repeats,
        "variants": figures_of(times, verdicts, case.bytes),
        "limit": [{**asdict(finalists[name]), "time": median} for name, median in ways.items()],
    }
    for name, values in times.items():
        result["variants"][name] |= report.unfinished(len(values), rounds)
    if arena.compiled is not None:
        arena.compiled.require_one_graph()
        result["variants"][COMPILED]["compile_seconds"] = arena.compiled.seconds
    return result, times


def run_all(cases: Sequence[Case], clerk: Clerk, args: argparse.Namespace, console: Console, record: Any) -> None:
    """Measures the cases that the time lasts for; saves after each, and shows a table when a place is done."""
    with empty_cache(), report.make_progress(console) as progress:
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
                result, times = run(case, args.rounds or case.model.rounds, compiled)
                record["results"].append(result)
                record["claims"] += claims_of(case, times)
                if compiled:
                    clerk.note(case, result["variants"][COMPILED]["compile_seconds"])
                gc.collect()
            report.save_json(args.output / "limits.json", record)
            if case.place != (cases[i + 1].place if i + 1 < len(cases) else None):
                for table in tables(record, [case.place]):
                    console.print(table.rich())
            progress.advance(bar)


def title(place: str, results: Sequence[Record]) -> str:
    """What the results of one place share."""
    if place == "shapes":
        return f"{TITLES[place]}, fp32"
    held = [result["held"] / MIB for result in results]
    least, most = (f"{size:,.3g}" if size < 100 else f"{size:,.0f}" for size in (min(held), max(held)))
    return f"{TITLES[place]}, {least if least == most else f'{least} to {most}'} MiB in all"


def tables(record: Record, places: Iterable[str] = TITLES) -> Iterator[Table]:
    """One for each place; GPT-2 from memory is also one of the known models."""
    names = (*VARIANTS, COMPILED)
    for place in places:
        rows, some = [], []
        for result in record["results"]:
            rule, variants = LABELS[result["rule"]], result["variants"]
            if result["place"] == place or (
                place == "shapes" and result["model_name"] in MODELS and COMPILED in variants
            ):
                some.append(result)
                rows.append((
                    f"{rule}, {result['dtype']}" if place in TARGETS else f"{result['model_name']}, {rule}",
                    f"{variants[OURS]['gb_per_s']:.1f}",
                    f"{variants[OURS]['limit_share']['median']:.3f}",
                    *(time_and_ratio(variants.get(name)) for name in names),
                ))  # fmt: skip
        if some:
            yield Table(
                ("µs per step (times ours)", "our GB/s", "share of the limit", *names), rows, title(place, some)
            )


def outcomes(claims: Sequence[Record]) -> Iterator[str]:
    """In how many cases each target was reached, and what is farthest from it."""
    kinds: dict[tuple[str, str, float], list[Record]] = {}
    for claim in claims:
        where = claim["case"][0] if claim["numerator"] == LIMIT else ""
        kinds.setdefault((claim["numerator"], where, claim["target"]), []).append(claim)
    for (numerator, where, target), some in kinds.items():
        worst = min(some, key=lambda claim: claim["reached"]["median"])
        what = f"share of the limit, {where}" if numerator == LIMIT else f"time of {numerator} over ours"
        yield (
            f"{what}: at least {target:g} in {sum(claim['holds'] for claim in some)} of {len(some)} cases; "
            f"lowest {worst['reached']['median']:.3f} ({', '.join(worst['case'])})"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; the exit status is 1 if a step of ours was wrong."""
    parser = options.Parser(__doc__, rounds=(None, 5))
    parser.add_names("--place", [*TARGETS, "shapes"], "which sizes (default: all)")
    parser.add_names("--optimizer", LABELS, "which optimizers (default: all)")
    parser.add_names("--dtype", DTYPES, "which dtypes (default: all)")
    parser.add_argument("--minutes", type=float, default=9.5, help="when to begin nothing more (default: 9.5)")
    parser.add_argument("--compile", choices=("none", "default", "all"), default="default",
                        help="which steps to compile: all takes half an hour more")  # fmt: skip
    args = parser.parse(arguments)
    console, machine = options.begin(args)
    found = caches(torch.get_num_threads())
    cases = [
        case
        for case in make_cases(budgets(found))
        if case.place in (args.place or case.place)
        and case.rule in (args.optimizer or case.rule)
        and case.dtype in (args.dtype or case.dtype)
        and (case.place != "shapes" or args.compile != "none")
    ]
    settings = {"quick": args.quick, "rounds": args.rounds, "compile": args.compile}
    record: dict[str, Any] = {"machine": machine, "settings": settings, "caches": found}
    record |= {"results": [], "claims": [], "left_out": []}
    run_all(cases, Clerk(args.minutes, args.compile), args, console, record)
    if missed := [claim for claim in record["claims"] if not claim["holds"]]:
        console.print(report.claims_table(missed).rich())
    left_out = (f"left out, as the time did not last: {', '.join(what)}" for what in record["left_out"])
    console.print(*outcomes(record["claims"]), *left_out, sep="\n")
    return int(any(not result["variants"][OURS]["correct"] for result in record["results"]))
