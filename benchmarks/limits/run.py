"""What share of the machine's own limit does each step reach, and how do torch.compile's steps compare?

The limit is the time in which the same bytes are read and written with almost no arithmetic (`shared/probe.cpp`), in
the fastest of several ways. Rules and dtypes are measured at a size that fits the second-level caches of the threads,
one that fits the third level, and GPT-2's shapes, which come from memory; beside them stand torch's fused steps and
steps that torch.compile has made. Everything is timed in the same rounds, on the same tensors.

GPT-2's steps are compiled for Adam and SGD with momentum in fp32 only, since each takes up to a minute, and so are
those of other known models. What there is no time for is left out, and listed.

Output: a table for each place, `limits.json`; exit status 1 if a step of ours was wrong.
"""

import gc
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.limits.cases import LARGE, MIB, STRIDE, TARGETS, Case, budgets, caches, make_cases
from benchmarks.shared import options
from benchmarks.shared.arena import Arena, figures_of
from benchmarks.shared.compiled import COMPILED, empty_cache
from benchmarks.shared.files import Record, save_json
from benchmarks.shared.measure import Call, spread, time_rounds
from benchmarks.shared.report import Claim, Table, check_claims, each, is_wrong, show_claims, time_and_ratio
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
        self.deadline, self.compiles = time.monotonic() + 60 * minutes, compiles
        self.per_tensor = dict(SECONDS_PER_TENSOR)

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def wants(self, case: Case) -> bool:
        """Whether a case is to be compiled, if there is time."""
        known = case.model_name in MODELS and case.rule in ("adam", "sgd") and case.dtype == "fp32"
        few = len(case.model.shapes) == 1 or known
        return self.compiles == "all" or (self.compiles == "default" and few)

    def lasts(self, case: Case) -> bool:
        """Whether there is time left for compiling."""
        return self.per_tensor.get(case.rule, max(self.per_tensor.values())) * len(case.model.shapes) <= self.left()

    def note(self, case: Case, seconds: float) -> None:
        """Learns from the time that compiling took, where fixed costs do not count."""
        if (tensors := len(case.model.shapes)) >= 100:
            self.per_tensor[case.rule] = seconds / tensors


def run(case: Case, rounds: int, compiled: bool) -> dict[str, Any]:
    """The result of one case as a JSON object, with the claims that it bears on."""
    stride = STRIDE if case.model.elements > LARGE else 1
    arena = Arena(case.model, case.rule, DTYPES[case.dtype], stride, YARDSTICKS)
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
        "variants": figures_of(times, verdicts, case.bytes, rounds),
        "limit": [{**asdict(finalists[name]), "time": median} for name, median in ways.items()],
    }
    if arena.compiled is not None:
        arena.compiled.require_one_graph()
        result["variants"][COMPILED]["compile_seconds"] = arena.compiled.seconds
    # A share of the limit, and no compiled step that takes less time.
    claims = [Claim(case.key, LIMIT, OURS, TARGETS[case.place])] if case.place in TARGETS else []
    claims.append(Claim(case.key, COMPILED, OURS, NEVER_SLOWER))
    return {"result": result, "claims": check_claims(claims, {case.key: times})}


def tables(record: Record, places: Iterable[str] = TITLES) -> Iterator[Table]:
    """One for each place; GPT-2 from memory is also one of the known models."""
    names = (*VARIANTS, COMPILED)
    for place in places:
        rows, held = [], []
        for r in record["results"]:
            ours, compared = r["variants"][OURS], r["model_name"] in MODELS and COMPILED in r["variants"]
            if r["place"] == place or (place == "shapes" and compared):
                held.append(r["held"] / MIB)
                label = LABELS[r["rule"]]
                rows.append((
                    f"{label}, {r['dtype']}" if place in TARGETS else f"{r['model_name']}, {label}",
                    f"{ours['gb_per_s']:.1f}",
                    f"{ours['limit_share']['median']:.3f}",
                    *(time_and_ratio(r["variants"].get(name)) for name in names),
                ))  # fmt: skip
        if rows:
            sizes = dict.fromkeys(f"{s:,.3g}" if s < 100 else f"{s:,.0f}" for s in (min(held), max(held)))
            what = "fp32" if place == "shapes" else f"{' to '.join(sizes)} MiB in all"
            header = ("µs per step (times ours)", "our GB/s", "share of the limit", *names)
            yield Table(header, rows, f"{TITLES[place]}, {what}")


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
    clerk = Clerk(args.minutes, args.compile)
    with empty_cache():
        for case in each(console, cases, lambda case: ", ".join(case.key)):
            compiled = clerk.wants(case) and clerk.lasts(case)
            if clerk.left() <= 0 or (case.place == "shapes" and not compiled):
                record["left_out"].append(case.key)
                continue
            if clerk.wants(case) and not compiled:
                record["left_out"].append((*case.key, COMPILED))
            measured = run(case, args.rounds or case.model.rounds, compiled)
            record["results"].append(measured["result"])
            record["claims"] += measured["claims"]
            if compiled:
                clerk.note(case, measured["result"]["variants"][COMPILED]["compile_seconds"])
            gc.collect()
            save_json(args.output / "limits.json", record)
    save_json(args.output / "limits.json", record)
    for table in tables(record):
        console.print(table.rich())
    show_claims([claim for claim in record["claims"] if not claim["holds"]], console)
    left_out = (f"left out for want of time: {', '.join(what)}" for what in record["left_out"])
    console.print(*outcomes(record["claims"]), *left_out, sep="\n")
    return int(is_wrong([result["variants"][OURS] for result in record["results"]]))
