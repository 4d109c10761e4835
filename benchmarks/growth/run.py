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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.growth import arena as arenas
from benchmarks.growth.arena import RESIDENT, TEMPORARY, TENSOR
from benchmarks.growth.time import MOST_ROUNDS, VARIANTS, at_size
from benchmarks.shared import options
from benchmarks.shared.files import Record, save_json
from benchmarks.shared.probe import Way
from benchmarks.shared.report import Table, each, is_wrong, time_and_ratio
from benchmarks.shared.shapes import Model
from benchmarks.shared.variants import LIMIT, OURS

SPARE = 2**30  # bytes of memory left to others
FOR_LOOP = "torch-default"


class Axis(NamedTuple):
    title: str
    sizes: tuple[int, ...]  # how many items
    quick: tuple[int, ...]  # how many in a quick run
    shown: int  # every so many sizes is in the table
    model: Callable[[int], Model]  # the shapes of a size


AXES = {
    "tensors": Axis(f"tensors of {TENSOR} elements", (*(2**i for i in range(17)), 100_000), (1, 8, 64, 512, 4096), 4,
                    arenas.many_tensors),
    "elements": Axis("elements in one tensor", tuple(2**i for i in range(31)), tuple(2**i for i in range(0, 24, 2)), 5,
                     arenas.one_tensor),
}  # fmt: skip


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


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options.Parser(__doc__, rounds=(MOST_ROUNDS, 3), threads=2)
    parser.add_argument("--minutes", type=float, default=9.5, help="sizes that would take longer are left out")
    parser.add_argument("--most", type=int, default=2**30, help="no size beyond (default: 2^30)")
    return parser.parse(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    begun = time.monotonic()
    console, machine = options.begin(args)
    record: dict[str, Any] = {
        "machine": machine,
        "settings": {name: getattr(args, name) for name in ("rounds", "threads", "minutes", "most", "quick")},
        "left_out": [],
        "axes": {},
    }
    for i, name in enumerate(each(console, list(AXES), str)):
        sizes = [size for size in (AXES[name].quick if args.quick else AXES[name].sizes) if size <= args.most]
        results = record["axes"][name] = []
        until = begun + 60 * args.minutes * (i + 1) / len(AXES)
        for result in measured(name, sizes, args.rounds, until, record["left_out"]):
            results.append(result)
            save_json(args.output / "growth.json", record)
    save_json(args.output / "growth.json", record)
    for table in tables(record):
        console.print(table.rich())
    console.print(*(f"left out: {note}" for note in record["left_out"]), sep="\n")
    return int(is_wrong([r["variants"][OURS] for results in record["axes"].values() for r in results]))
