"""What huge pages do for the step itself: the same step on ordinary memory and on 2 MiB pages, interleaved."""

import copy
import mmap
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.shared.arena import CHECK_SCALES, Arena
from benchmarks.shared.measure import CpuClock, Spread, interleaved, ratio, time_call
from benchmarks.shared.report import correct_text, make_table, spread_text
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import OURS

HUGE = 2 << 20
ALIGNMENT = 64  # bytes, as torch aligns
ORDINARY = "ordinary"
ROUNDS = {"resnet50": 60, "gpt2": 20}
MADVISE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux


def huge_bytes() -> int:
    """How much of this process lies on huge pages, where the system tells."""
    listing = Path("/proc/self/smaps_rollup")
    found = re.search(r"AnonHugePages: +(\d+) kB", listing.read_text()) if listing.exists() else None
    return int(found[1]) << 10 if found else 0


def on_huge_pages(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies that lie one after another in memory of their own, for which 2 MiB pages are asked."""
    offsets, end = [], 0
    for tensor in tensors:
        offsets.append(end)
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    size = -(-end // HUGE) * HUGE
    region = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # a tensor keeps it alive
    start = -torch.frombuffer(region, dtype=torch.uint8).data_ptr() % HUGE
    if MADVISE is not None:
        region.madvise(MADVISE, start & -mmap.PAGESIZE, size)
    copies = []
    for tensor, offset in zip(tensors, offsets, strict=True):
        place = torch.frombuffer(region, dtype=tensor.dtype, count=tensor.numel(), offset=start + offset)
        copies.append(place.view(tensor.shape).copy_(tensor.detach()))
    return copies


def arenas_of(model: str, rule: str) -> dict[str, Arena]:
    """The same tensors in ordinary memory, with the state on huge pages, and with everything there but the source."""
    ordinary = Arena(MODELS[model], rule)
    state = copy.copy(ordinary)
    state.state = {name: on_huge_pages(tensors) for name, tensors in ordinary.state.items()}
    everything = copy.copy(state)
    everything.params = [nn.Parameter(p) for p in on_huge_pages(ordinary.params)]
    everything.grads = on_huge_pages(ordinary.grads)
    return {ORDINARY: ordinary, "state on huge pages": state, "all on huge pages": everything}


def checksum_after_steps(arena: Arena) -> int:
    """Of the parameters, after the steps that `Arena.check` takes; the arena is as before, then."""
    arena.reset()
    step = arena.step(OURS)
    for scale in CHECK_SCALES:
        arena.write_grads(scale)
        step()
    checksum = sum(zlib.crc32(p.detach().numpy().data) for p in arena.params)
    arena.reset()
    return checksum


def huge_page_steps(model: str, rule: str, rounds: int, console: Console) -> dict[str, Any]:
    """Measures, prints the table, and returns the result as a JSON object."""
    before = huge_bytes()
    arenas = arenas_of(model, rule)
    mib = (huge_bytes() - before) / (1 << 20)
    checksums = {name: checksum_after_steps(arena) for name, arena in arenas.items()}
    steps: dict[str, Callable[[], object]] = {name: arena.step(OURS) for name, arena in arenas.items()}
    times: dict[str, list[float]] = {name: [] for name in arenas}
    clock = CpuClock()
    for name in interleaved(list(arenas), rounds + 1):
        arenas[name].write_grads()
        times[name].append(time_call(steps[name], clock))
    times = {name: values[1:] for name, values in times.items()}  # the first step of each is no figure
    ways: dict[str, Any] = {
        name: {
            "time": asdict(Spread.of(times[name])),
            "ratio": asdict(ratio(times[name], times[ORDINARY])),
            "correct": checksums[name] == checksums[ORDINARY],
        }
        for name in arenas
    }
    rows = [
        (name, spread_text(Spread(**w["time"])), spread_text(Spread(**w["ratio"])), correct_text(w["correct"]))
        for name, w in ways.items()
    ]
    title = f"{model}, {rule}: the step on huge pages ({mib:,.0f} MiB of them)"
    console.print(make_table(title, ("", "time, µs", "/ ordinary", "same bits"), rows))
    return {"huge_mib": mib, "ways": ways}
