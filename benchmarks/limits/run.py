"""What share of the machine's own limit does each step reach, and how do torch.compile's steps compare?

The limit is the time in which the same bytes are read and written with almost no arithmetic (`shared/probe.cpp`), in
the fastest of several ways. Rules and dtypes are measured at a size that fits the second-level caches of the threads,
one that fits the third level, and GPT-2's shapes, which come from memory; beside them stand torch's fused steps and
steps that torch.compile has made. Everything is timed in the same rounds, on the same tensors.

GPT-2's steps are compiled for Adam and SGD with momentum in fp32 only, since each takes up to a minute, and so are
those of other known models. What there is no time for is left out, and listed.

Output: a table for each place, `limits.json`; exit status 1 if a step of ours was wrong.
"""

import argparse
import gc
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.shared.arena import Arena, figures_of
from benchmarks.shared.compiled import COMPILED, empty_cache
from benchmarks.shared.files import Record
from benchmarks.shared.measure import Call, spread, time_rounds
from benchmarks.shared.options import question
from benchmarks.shared.report import Table, each, time_and_ratio
from benchmarks.shared.shapes import MODELS, Model
from benchmarks.shared.variants import ALL_RULES, DTYPES, LABELS, LIMIT, OURS

CPU = Path("/sys/devices/system/cpu")
MIB = 1 << 20
UNITS = {"K": 1 << 10, "M": MIB, "G": 1 << 30}
OTHER_MODELS = ("tutorial-mlp", "resnet50", "400x64")  # the one that takes longest to compile comes last
STRIDE = 61  # of a large model one in so many elements is checked: no divisor of a vector's length
LARGE = 4 * MIB  # elements
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


@dataclass(frozen=True)
class Case:
    place: str  # "L2", "L3", "memory", or "shapes" for known models beside torch.compile
    model_name: str  # of `MODELS`; in the caches the place, where there is one parameter
    model: Model
    rule: str  # a key of `LABELS`
    dtype: str  # a key of `DTYPES`

    @property
    def key(self) -> tuple[str, str]:
        return self.model_name, f"{LABELS[self.rule]}, {self.dtype}"

    @property
    def bytes(self) -> int:
        """Traffic of a step: all operands are read, all but the gradient are written."""
        return self.model.elements * DTYPES[self.dtype].itemsize * ALL_RULES[self.rule].accesses

    @property
    def held(self) -> int:
        """Bytes of all operands."""
        return self.model.elements * DTYPES[self.dtype].itemsize * ALL_RULES[self.rule].operands


def caches(threads: int, root: Path = CPU) -> dict[str, int]:
    """Bytes of the unified caches that so many threads have, each on a core of its own; RuntimeError if unknown."""
    found = {}
    for place in sorted(root.glob("cpu0/cache/index*")):
        files = (place / name for name in ("type", "level", "size", "shared_cpu_list"))
        kind, level, size, users = (file.read_text().strip() for file in files)
        ends = [part.split("-") for part in users.split(",")]  # as in 0-3,8
        cores = sum(int(part[-1]) - int(part[0]) + 1 for part in ends)
        if kind == "Unified":
            found[f"L{level}"] = -(-threads // cores) * int(size[:-1]) * UNITS[size[-1]]
    if "L2" not in found:
        raise RuntimeError(f"{root} does not tell the size of the second-level cache")
    return found


def budgets(caches: Mapping[str, int]) -> dict[str, int]:
    """Bytes for all operands together: three quarters of the second level, a quarter of the third, at most 64 MiB.

    The third level is left out where that would not be well beyond the second.
    """
    third = min(caches.get("L3", 0) // 4, 64 * MIB)
    return {"L2": caches["L2"] * 3 // 4, **({"L3": third} if third >= 2 * caches["L2"] else {})}


def make_cases(budgets: Mapping[str, int]) -> Iterator[Case]:
    counts = {"L2": (60, 40), "L3": (15, 6)}  # rounds, steps in a row
    for (place, budget), rule, dtype in product(budgets.items(), LABELS, DTYPES):
        elements = budget // (ALL_RULES[rule].operands * DTYPES[dtype].itemsize) // 64 * 64
        yield Case(place, place, Model(((elements,),), *counts[place]), rule, dtype)
    for rule, dtype in product(LABELS, DTYPES):
        yield Case("memory", "gpt2", replace(MODELS["gpt2"], rounds=11), rule, dtype)
    for name, rule in product(OTHER_MODELS, ("sgd", "adam")):
        yield Case("shapes", name, MODELS[name], rule, "fp32")


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
        "elements": case.model.elements,
        "variants": figures_of(times, verdicts, case.bytes, rounds),
        "limit": [{**asdict(finalists[name]), "time": median} for name, median in ways.items()],
    }
    if arena.compiled is not None:
        arena.compiled.require_one_graph()
    return result


def tables(record: Record) -> Iterator[Table]:
    """One for each place; GPT-2 from memory is also one of the known models."""
    names = (*VARIANTS, COMPILED)
    for place in TITLES:
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


def measure(args: argparse.Namespace) -> Iterator[Record]:
    found = caches(torch.get_num_threads())
    cases = [
        case
        for case in make_cases(budgets(found))
        if case.place in (args.place or case.place)
        and case.rule in (args.optimizer or case.rule)
        and case.dtype in (args.dtype or case.dtype)
    ]
    record: dict[str, Any] = {"caches": found, "results": [], "left_out": []}
    deadline = time.monotonic() + 60 * args.minutes
    with empty_cache():
        for case in each(cases, lambda case: ", ".join(case.key)):
            left = deadline - time.monotonic()
            compiled = wants_compiled(case) and compiling_seconds(case) <= left
            if left <= 0 or (wants_compiled(case) and not compiled):
                what = ", ".join((*case.key, *([COMPILED] * (left > 0))))
                record["left_out"].append(f"{what}, for want of time (--minutes)")
            if left > 0:
                record["results"].append(run(case, args.rounds or case.model.rounds, compiled))
                gc.collect()
            yield record


main = question(
    __doc__, "limits", measure, tables, {"--place": TITLES, "--optimizer": LABELS, "--dtype": DTYPES},
    lambda parser: parser.add_limit("--minutes", 9.5, 9.5, "when to begin nothing more"), rounds=(None, 5),
)  # fmt: skip
