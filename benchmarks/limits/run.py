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

from benchmarks.limits.cases import LARGE, MIB, STRIDE, Case, budgets, caches, make_cases
from benchmarks.shared import options
from benchmarks.shared.arena import Arena, figures_of
from benchmarks.shared.compiled import COMPILED, empty_cache
from benchmarks.shared.files import Record, save_json
from benchmarks.shared.measure import Call, spread, time_rounds
from benchmarks.shared.report import Table, each, is_wrong, time_and_ratio
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import DTYPES, LABELS, LIMIT, OURS

VARIANTS = (OURS, "torch-fused")
YARDSTICKS = ("torch-default",)
FINALISTS = 3  # ways of the limit that are timed in the rounds
SECONDS_PER_TENSOR = {"adam": 0.4, "sgd": 0.15}  # that compiling takes
SECONDS = 20.0  # of one variant in one case; on a quiet machine the longest takes 2
TITLES = {
    "L2": "in the second-level caches",
    "L3": "in the third-level cache",
    "memory": "from memory",
    "shapes": "shapes of known models",
}


def wants_compiled(case: Case) -> bool:
    known = case.model_name in MODELS and case.rule in ("adam", "sgd") and case.dtype == "fp32"
    return len(case.model.shapes) == 1 or known


def compiling_seconds(case: Case) -> float:
    """About how long compiling takes."""
    return SECONDS_PER_TENSOR.get(case.rule, max(SECONDS_PER_TENSOR.values())) * len(case.model.shapes)


def run(case: Case, rounds: int, compiled: bool) -> dict[str, Any]:
    """The result of one case as a JSON object."""
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
    return result


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
                    f"{label}, {r['dtype']}" if place != "shapes" else f"{r['model_name']}, {label}",
                    f"{ours['gb_per_s']:.1f}",
                    f"{ours['limit_share']['median']:.3f}",
                    *(time_and_ratio(r["variants"].get(name)) for name in names),
                ))  # fmt: skip
        if rows:
            sizes = dict.fromkeys(f"{s:,.3g}" if s < 100 else f"{s:,.0f}" for s in (min(held), max(held)))
            what = "fp32" if place == "shapes" else f"{' to '.join(sizes)} MiB in all"
            header = ("µs per step (times ours)", "our GB/s", "share of the limit", *names)
            yield Table(header, rows, f"{TITLES[place]}, {what}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options.Parser(__doc__, rounds=(None, 5))
    parser.add_names("--place", TITLES, "which sizes (default: all)")
    parser.add_names("--optimizer", LABELS, "which optimizers (default: all)")
    parser.add_names("--dtype", DTYPES, "which dtypes (default: all)")
    parser.add_argument("--minutes", type=float, default=9.5, help="when to begin nothing more (default: 9.5)")
    args = parser.parse(arguments)
    console, machine = options.begin(args)
    found = caches(torch.get_num_threads())
    cases = [
        case
        for case in make_cases(budgets(found))
        if case.place in (args.place or case.place)
        and case.rule in (args.optimizer or case.rule)
        and case.dtype in (args.dtype or case.dtype)
    ]
    settings = {"quick": args.quick, "rounds": args.rounds}
    record: dict[str, Any] = {"machine": machine, "settings": settings, "caches": found}
    record |= {"results": [], "left_out": []}
    deadline = time.monotonic() + 60 * args.minutes
    with empty_cache():
        for case in each(console, cases, lambda case: ", ".join(case.key)):
            left = deadline - time.monotonic()
            compiled = wants_compiled(case) and compiling_seconds(case) <= left
            if left <= 0:
                record["left_out"].append(case.key)
                continue
            if wants_compiled(case) and not compiled:
                record["left_out"].append((*case.key, COMPILED))
            record["results"].append(run(case, args.rounds or case.model.rounds, compiled))
            gc.collect()
            save_json(args.output / "limits.json", record)
    save_json(args.output / "limits.json", record)
    for table in tables(record):
        console.print(table.rich())
    console.print(*(f"left out for want of time: {', '.join(what)}" for what in record["left_out"]), sep="\n")
    return int(is_wrong([result["variants"][OURS] for result in record["results"]]))
