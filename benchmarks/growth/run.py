"""How does the cost of a step grow with the number of tensors, and with the number of elements in one tensor?

tensors   1 to 100,000 tensors of 64 elements
elements  one tensor of 1 to 2^30 elements, as far as memory goes: 16 bytes each, and 8 more for torch's for-loop

Adam, fp32, two threads (`--threads`): torch's default (on the CPU its for-loop), torch's fused and ours, on the same
tensors and interleaved; beside them the streaming limit (`shared/probe.cpp`), which at small sizes is an empty call.
Steps follow one another with nothing between, so what fits in a cache stays there. Every size is checked (`arena.py`).
What is left out, for want of memory or time, is listed.

Output: a table for each, `growth.json`, written after each size; exit status 1 if a step of ours was wrong.
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.growth.arena import RESIDENT, TEMPORARY, TENSOR, GrowthArena, many_tensors, one_tensor
from benchmarks.shared.arena import figures_of
from benchmarks.shared.files import Record
from benchmarks.shared.measure import Call, time_call, time_rounds
from benchmarks.shared.options import Parser, question
from benchmarks.shared.probe import Probe, Way
from benchmarks.shared.report import Table, each, time_and_ratio
from benchmarks.shared.shapes import Model
from benchmarks.shared.variants import LIMIT, OURS

FOR_LOOP = "torch-default"
VARIANTS = (OURS, FOR_LOOP, "torch-fused")
MEASUREMENT = 5e3  # microseconds that one takes, over several calls in a row if need be
MOST_REPEATS = 1000
BUDGET = 0.5  # seconds for each variant, as long as that allows of `LEAST_ROUNDS`
LEAST_ROUNDS, MOST_ROUNDS = 3, 15
LARGE = 2**24  # elements beyond which no call warms up, and the streaming limit goes the way of the size before
SPARE = 2**30  # bytes of memory left to others


class Axis(NamedTuple):
    title: str
    sizes: tuple[int, ...]  # how many items
    quick: tuple[int, ...]  # how many in a quick run
    shown: int  # every so many sizes is in the table
    model: Callable[[int], Model]  # the shapes of a size


AXES = {
    "tensors": Axis(f"tensors of {TENSOR} elements", (*(2**i for i in range(17)), 100_000), (1, 8, 64, 512, 4096), 4,
                    many_tensors),
    "elements": Axis("elements in one tensor", tuple(2**i for i in range(31)), tuple(2**i for i in range(0, 24, 2)), 5,
                     one_tensor),
}  # fmt: skip


def probe_of(arena: GrowthArena, last: Sequence[Way] | None) -> Probe:
    """The streaming limit of the arena's tensors, by the way found best there or, if they are large, at the last."""
    elements = arena.model.elements
    few = {"trials": 2, "repeats": 2} if elements > 2**18 else {"repeats": 10}
    return arena.probe(chosen=last if elements > LARGE else None, **few)


def time_calls(calls: Mapping[str, Call], rounds: int, warm: bool = True) -> dict[str, list[float]]:
    """Times each call once a round, slow ones in the first rounds only."""
    repeats = dict.fromkeys(calls, 1)
    for name, call in calls.items() if warm else ():
        took = time_call(call)
        took = took if took > 1e5 * BUDGET else min(time_call(call) for _ in range(3))
        repeats[name] = max(1, min(MOST_REPEATS, int(MEASUREMENT / took)))

    def before(name: str) -> None:
        if repeats[name] > 1:
            calls[name]()

    return time_rounds(calls, rounds, repeats, before=before, seconds=BUDGET, fewest=LEAST_ROUNDS)


def at_size(model: Model, names: Sequence[str], rounds: int, last: Sequence[Way] | None) -> tuple[Record, list[Way]]:
    """The result of one size as a JSON object, whose steps are checked; and the best way of the streaming limit."""
    arena = GrowthArena(model)
    optimizers = {name: arena.optimizer(name) for name in names}
    verdicts = arena.check(optimizers)
    probe = probe_of(arena, last)
    calls: dict[str, Call] = {name: optimizer.step for name, optimizer in optimizers.items()} | {LIMIT: probe}
    times = time_calls(calls, rounds, warm=model.elements <= LARGE)
    return {"elements": model.elements, "variants": figures_of(times, verdicts)}, probe.ranking[:1]


def is_free(size: int) -> bool:
    """Whether as many bytes of memory are free, and `SPARE` beside them."""
    listing = Path("/proc/meminfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    free = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)
    return free is None or size + SPARE <= free * 1024


def measured(name: str, sizes: Sequence[int], rounds: int, until: float, left_out: list[str]) -> Iterator[Record]:
    """The result of each size, from small to large; what there is no memory or time for is added to `left_out`."""
    way: list[Way] | None = None
    spent, last = 0.0, 1
    for size in sizes:
        began, model = time.monotonic(), AXES[name].model(size)
        if not is_free(RESIDENT * model.elements) or began + spent * size / last > until:
            left_out.append(f"from {size:,} {name} on, for want of memory or time")
            return
        fits = is_free((RESIDENT + TEMPORARY) * model.elements)
        if not fits:
            left_out.append(f"{size:,} {name}, {FOR_LOOP}: less is free than {TEMPORARY} bytes an element more")
        result, way = at_size(model, [v for v in VARIANTS if fits or v != FOR_LOOP], rounds, way)
        yield {"size": size, **result}
        gc.collect()  # the tensors of this size
        spent, last = time.monotonic() - began, size


def count(size: int) -> str:
    """A number of items, large powers of two as such."""
    return f"2^{size.bit_length() - 1}" if size >= 2**20 and size & (size - 1) == 0 else f"{size:,}"


def tables(record: Record) -> Iterator[Table]:
    """A table for each axis, with a row for each of some sizes, the last among them."""
    names = (*VARIANTS, LIMIT)
    for name, results in record["axes"].items():
        picked = [r for i, r in enumerate(results) if i % AXES[name].shown == 0 or r is results[-1]]
        rows = [[count(r["size"]), *(time_and_ratio(r["variants"].get(n), missing="-") for n in names)] for r in picked]
        yield Table([f"µs a step (times ours), {AXES[name].title}", *names], rows)


def add_options(parser: Parser) -> None:
    parser.add_limit("--minutes", 9.5, 9.5, "sizes that would take longer are left out")
    parser.add_argument("--most", type=int, default=2**30, help="no size beyond (default: 2^30)")


def measure(args: argparse.Namespace) -> Iterator[Record]:
    begun = time.monotonic()
    record: dict[str, Any] = {"left_out": [], "axes": {}}
    for i, name in enumerate(each(list(AXES), str)):
        sizes = [size for size in (AXES[name].quick if args.quick else AXES[name].sizes) if size <= args.most]
        results = record["axes"][name] = []
        until = begun + 60 * args.minutes * (i + 1) / len(AXES)
        for result in measured(name, sizes, args.rounds, until, record["left_out"]):
            results.append(result)
            yield record
    yield record


main = question(__doc__, "growth", measure, tables, {}, add_options, rounds=(MOST_ROUNDS, 3), threads=2)
