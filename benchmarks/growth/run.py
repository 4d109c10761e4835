"""How does the cost of a step grow with the number of tensors, and with the number of elements in one tensor?

tensors   1 to 100,000 tensors of 64 elements
elements  one tensor of 1 to 2^30 elements, as far as memory goes: 16 bytes each, and 8 more for torch's for-loop

Adam, fp32: torch's default (on the CPU its for-loop), torch's fused and ours, with one thread and with two
(`--threads`), on the same tensors and interleaved; beside them the streaming limit (`shared/probe.cpp`), which at small
sizes is an empty call. Steps follow one another with nothing between, so what fits in a cache stays there. Every size
is checked (`arena.py`). Then break points are looked for in the figures (`breaks.py`), and a model of threads is fitted
to them and says what more threads might bring (`model.py`). What is left out, for want of memory or time, is listed.

Output: `growth.json`, written after each size; exit status 1 if a step of ours was wrong.
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.growth import arena as arenas
from benchmarks.growth.arena import RESIDENT, TEMPORARY
from benchmarks.growth.breaks import breaks, time_of
from benchmarks.growth.model import model
from benchmarks.growth.time import MOST_ROUNDS, VARIANTS, Probes, at_size
from benchmarks.shared import options
from benchmarks.shared.files import Record, save_json
from benchmarks.shared.measure import CPU, CpuClock, cache_levels, spread, time_call
from benchmarks.shared.probe import Probe, ways
from benchmarks.shared.report import number
from benchmarks.shared.shapes import Model
from benchmarks.shared.variants import LIMIT, OURS

SPARE = 2**30  # bytes of memory left to others


class Axis(NamedTuple):
    item: str  # what is counted
    sizes: tuple[int, ...]  # how many
    quick: tuple[int, ...]  # how many in a quick run
    model: Callable[[int], Model]  # the shapes of a size
    pooled: bool  # whether the sizes share memory
    resident: Callable[[], float]  # finds the bytes of memory that an item takes


AXES = {
    "tensors": Axis(
        "tensor", (*(2**i for i in range(17)), 100_000), (1, 8, 64, 512, 4096),
        arenas.many_tensors, False, arenas.bytes_per_tensor,
    ),
    "elements": Axis(
        "element", tuple(2**i for i in range(31)), tuple(2**i for i in range(0, 24, 2)),
        arenas.one_tensor, True, lambda: RESIDENT,
    ),
}  # fmt: skip


class Limits:
    """Until when there is time, and for what there is memory; `left_out` lists what was left out, and why."""

    def __init__(self, minutes: float) -> None:
        self.end = self.until = time.monotonic() + 60 * minutes
        self.left_out: list[str] = []

    def share(self, parts: int) -> None:
        """From now on there is that part of the time that is left."""
        self.until = (now := time.monotonic()) + (self.end - now) / parts

    def against(self, growth: int, seconds: float) -> str | None:
        """Why something cannot be done that takes as many bytes and seconds, if so."""
        if not self.in_memory(growth):
            return f"the next needs {growth / 2**30:.1f} GiB more, and less is free"
        late = time.monotonic() + seconds > self.until
        return f"the next would take {seconds:.0f} s, and less is left" if late else None

    @staticmethod
    def in_memory(size: int) -> bool:
        """Whether as many bytes are free, and `SPARE` beside them."""
        listing = Path("/proc/meminfo")
        lines = listing.read_text().splitlines() if listing.exists() else []
        free = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)
        return free is None or size + SPARE <= free * 1024


def measured(axis: Axis, sizes: Sequence[int], args: argparse.Namespace, limits: Limits) -> Iterator[Record]:
    """The result of each size, from small to large, until memory or time ends."""
    probes = Probes(sorted({1, args.threads}))
    pool = arenas.make_pool(sizes[-1]) if axis.pooled else None
    touched, spent, last, resident = 0, 0.0, 1, axis.resident()
    for size in sizes:
        began, model = time.monotonic(), axis.model(size)
        what, growth = f"{size:,} {axis.item}s", RESIDENT * (model.elements - touched)
        fits = limits.in_memory(growth + TEMPORARY * model.elements)
        # More than half of the time of a large size is that of the for-loop.
        if why := limits.against(growth, spent * size / last / (1 if fits else 2)):
            return limits.left_out.append(f"from {what} on: {why}")
        if not fits:
            limits.left_out.append(f"{what}, {VARIANTS[0]}: less is free than {TEMPORARY} bytes an element more")
        names = [name for name in VARIANTS if fits or name != VARIANTS[0]]
        yield {"size": size, "resident": size * resident, **at_size(model, pool, names, probes, args.rounds)}
        gc.collect()  # the tensors of this size
        touched, spent, last = model.elements if pool else 0, time.monotonic() - began, size


def line(axis: Axis, result: Record) -> str:
    """The times of one size, with all threads and with one, and whether they are of correct steps."""
    cells = [f"{result['size']:>11,} {axis.item}{'s' if result['size'] > 1 else ' '}"]
    for name in (*VARIANTS, LIMIT):
        figures = result["variants"].get(name)
        several, one = (number(time_of(result, name, k)["median"]) if figures else "-" for k in (None, 1))
        cells.append(f"{several:>11} {f'({one})':>12}{' WRONG' if figures and figures.get('correct') is False else ''}")
    return "".join(cells)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options.Parser(__doc__, rounds=(MOST_ROUNDS, 3), threads=2)
    parser.add_names("--axis", AXES, "what grows (default: both)")
    parser.add_argument("--minutes", type=float, default=9.5, help="sizes that would take longer are left out")
    parser.add_argument("--most", type=int, default=2**30, help="no size beyond (default: 2^30)")
    return parser.parse(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    limits = Limits(args.minutes)
    console, machine = options.begin(args)
    listing = CPU / "cpu0/topology/thread_siblings_list"
    siblings = listing.read_text().strip() if listing.exists() else "0"
    empty = Probe("step", [[]] * 4, chosen=[next(ways(1))])  # from Python into compiled code and back
    record: dict[str, Any] = {
        "machine": machine,
        "caches": {
            name: {"bytes": cache["bytes"], "shared": cache["users"] not in ("0", siblings)}
            for name, cache in cache_levels().items()
        },
        "settings": {name: getattr(args, name) for name in ("rounds", "threads", "minutes", "most", "quick")},
        "empty_call": spread([time_call(empty, CpuClock(), 1000) for _ in range(args.rounds)]),
        "left_out": limits.left_out,
        "axes": {},
    }
    console.print(" " * 20, *(f"{name:>24}" for name in (*VARIANTS, LIMIT)), sep="")
    console.print("[dim]µs a step with all threads, in brackets with one; of the limit the faster[/]")
    names = args.axis or list(AXES)
    for i, name in enumerate(names):
        limits.share(len(names) - i)
        axis = AXES[name]
        sizes = [size for size in (axis.quick if args.quick else axis.sizes) if size <= args.most]
        results = record["axes"][name] = []
        for result in measured(axis, sizes, args, limits):
            results.append(result)
            console.print(line(axis, result), highlight=False)
            save_json(args.output / "growth.json", record)
    console.print(*(f"left out: {note}" for note in limits.left_out), sep="\n")
    record |= {"breaks": breaks(record), "model": model(record)}
    save_json(args.output / "growth.json", record)
    ours = (result["variants"][OURS]["correct"] for results in record["axes"].values() for result in results)
    return int(not all(ours))
