"""How the cost of a step grows: with the number of tensors, and with the number of elements in one tensor.

tensors   1 to 100,000 tensors of 64 elements
elements  one tensor of 1 to 2^30 elements, as far as memory goes: 16 bytes each, and 8 more for torch's for-loop

Adam, fp32: torch's default (on the CPU its for-loop), torch's fused and ours, with one thread and with two
(`--threads`), on the same tensors and interleaved; beside them the streaming limit (`probe.cpp`), which at small sizes
is an empty call. Steps follow one another with nothing between, so what fits in a cache stays there. Every size is
checked (`growth_arena.py`). Then break points are looked for in the figures (`growth_breaks.py`), a model of threads is
fitted to them and says what more threads might bring (`growth_model.py`), and the figure is drawn. `growth.json` is
written after each size. What is left out, for want of memory or time, is said.
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from benchmarks.growth.arena import (
    RESIDENT,
    TEMPORARY,
    GrowthArena,
    bytes_per_tensor,
    make_pool,
    many_tensors,
    one_tensor,
)
from benchmarks.growth.breaks import breaks
from benchmarks.growth.chart import draw_growth
from benchmarks.growth.model import model
from benchmarks.growth.time import LARGE, MOST_ROUNDS, VARIANTS, Probes, empty_call, measure, result_of, time_of
from benchmarks.shared.measure import CpuClock, Spread, caches, time_call
from benchmarks.shared.options import add_names, begin, make_parser
from benchmarks.shared.report import correct_text, machine_line, number, save_json
from benchmarks.shared.shapes import Model
from benchmarks.shared.variants import OURS
from benchmarks.step.run import LIMIT

SPARE = 2**30  # bytes of memory left to others
THREADS = 2


@dataclass(frozen=True)
class Axis:
    """What grows.

    Attributes:
        item: What is counted.
        sizes: How many.
        model: The shapes of a size.
        pooled: Whether the sizes share memory.
        resident: Finds the bytes of memory that an item takes.
    """

    item: str
    sizes: tuple[int, ...]
    model: Callable[[int], Model]
    pooled: bool
    resident: Callable[[], float]


AXES = {
    "tensors": Axis("tensor", (*(2**i for i in range(17)), 100_000), many_tensors, False, bytes_per_tensor),
    "elements": Axis("element", tuple(2**i for i in range(31)), one_tensor, True, lambda: RESIDENT),
}
QUICK = {"tensors": (1, 8, 64, 512, 4096), "elements": tuple(2**i for i in range(0, 24, 2))}


class Limits:
    """Until when there is time, and for what there is memory; keeps what is said of what was left out.

    Args:
        minutes: For the whole run.

    Attributes:
        left_out: What, and why.
    """

    def __init__(self, minutes: float) -> None:
        self.end = self.until = time.monotonic() + 60 * minutes
        self.left_out: list[str] = []

    def share(self, parts: int) -> None:
        """From now on there is that part of what is left of the time."""
        now = time.monotonic()
        self.until = now + (self.end - now) / parts

    def against(self, growth: int, seconds: float) -> str | None:
        """Why something cannot be done that takes as many bytes and seconds, if so."""
        if not self.in_memory(growth):
            return f"the next needs {growth / 2**30:.1f} GiB more, and less is free"
        if time.monotonic() + seconds > self.until:
            return f"the next would take {seconds:.0f} s, and less is left"
        return None

    @staticmethod
    def in_memory(size: int) -> bool:
        """Whether as many bytes are free, and `SPARE` beside them."""
        listing = Path("/proc/meminfo")
        lines = listing.read_text().splitlines() if listing.exists() else []
        free = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)
        return free is None or size + SPARE <= free * 1024


def at_size(
    model: Model, pool: dict[str, Tensor] | None, names: Sequence[str], probes: Probes, rounds: int
) -> dict[str, Any]:
    """Checks the variants on tensors of one size, measures them, and returns the result as a JSON object."""
    arena = GrowthArena(model, pool)
    optimizers = {name: arena.optimizer(name) for name in names}
    verdicts = arena.check(optimizers)
    calls = {(name, k): optimizer.step for name, optimizer in optimizers.items() for k in probes.ways}
    times = measure(calls | probes.of(arena), rounds, warm=model.elements <= LARGE)
    return result_of(arena, times, verdicts)


def measured(axis: Axis, sizes: Sequence[int], args: argparse.Namespace, limits: Limits) -> Iterator[dict[str, Any]]:
    """The result of each size, from small to large, until memory or time ends."""
    probes = Probes(sorted({1, args.threads}))
    pool = make_pool(sizes[-1]) if axis.pooled else None
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


def show(console: Console, axis: Axis, result: Mapping[str, Any]) -> None:
    """Prints the times of one size, with all threads and with one, and whether they are of correct steps."""
    cells = [f"{result['size']:>11,} {axis.item}{'s' if result['size'] > 1 else ' '}"]
    for name in (*VARIANTS, LIMIT):
        figures = result["variants"].get(name)
        several, one = (number(time_of(result, name, k).median) if figures else "-" for k in (None, 1))
        wrong = f" {correct_text(False)}" if figures and not figures.get("correct", True) else ""
        cells.append(f"{several:>11} [dim]{'(' + one + ')':>12}[/]{wrong}")
    console.print("".join(cells), highlight=False)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = make_parser(__doc__)
    add_names(parser, "--axis", list(AXES), "what grows (default: both)")
    parser.add_argument("--minutes", type=float, default=9.5, help="sizes that would take longer are left out")
    parser.add_argument("--most", type=int, default=2**30, help="no size beyond (default: 2^30)")
    args = parser.parse_args(arguments)
    args.threads = args.threads or THREADS
    args.rounds = args.rounds or (3 if args.quick else MOST_ROUNDS)
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, analyses and draws; the exit status is 1 if a step of ours was wrong."""
    args = parse(arguments)
    limits = Limits(args.minutes)
    console, machine = begin(args)
    clock = CpuClock()
    empty = empty_call()
    settings = {name: getattr(args, name) for name in ("rounds", "threads", "minutes", "most", "quick")}
    record: dict[str, Any] = {
        "machine": machine,
        "caches": caches(),
        "settings": settings,
        "empty_call": asdict(Spread.of([time_call(empty, clock, 1000) for _ in range(args.rounds)])),
        "left_out": limits.left_out,
        "axes": {},
    }
    heads = "".join(f"{name:>24}" for name in (*VARIANTS, LIMIT))
    console.print(f"{'':20}{heads}\n[dim]µs a step with all threads, in brackets with one; of the limit the faster[/]")
    names = args.axis or list(AXES)
    for i, name in enumerate(names):
        limits.share(len(names) - i)
        axis = AXES[name]
        sizes = [size for size in (QUICK[name] if args.quick else axis.sizes) if size <= args.most]
        results = record["axes"][name] = []
        for result in measured(axis, sizes, args, limits):
            results.append(result)
            show(console, axis, result)
            save_json(args.output / "growth.json", record)
    for note in limits.left_out:
        console.print(f"left out: {note}")
    record |= {"breaks": breaks(record), "model": model(record)}
    save_json(args.output / "growth.json", record)
    draw_growth(record, machine_line(machine), args.output / "growth.png")
    console.print(f"results written to {args.output}")
    variants = (result["variants"][OURS] for results in record["axes"].values() for result in results)
    return int(not all(figures["correct"] for figures in variants))


if __name__ == "__main__":
    raise SystemExit(main())
