"""What huge pages do for the step itself: the same step on ordinary memory and on 2 MiB pages, interleaved."""

import copy
import mmap
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.shared.arena import Arena
from benchmarks.shared.correctness import checksum
from benchmarks.shared.measure import ratio, spread, time_rounds
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


def huge_page_steps(model: str, rule: str, rounds: int) -> dict[str, Any]:
    before = huge_bytes()
    arenas = arenas_of(model, rule)
    mib = (huge_bytes() - before) / (1 << 20)
    checksums = {}
    for name, arena in arenas.items():
        arena.take_steps(arena.step(OURS))  # those of `Arena.check`
        checksums[name] = checksum(arena.params)
        arena.reset()
    steps = {name: arena.step(OURS) for name, arena in arenas.items()}
    times = time_rounds(steps, rounds, before=lambda name: arenas[name].write_grads(), warm_up=1)
    ways = {}
    for name, values in times.items():
        same = checksums[name] == checksums[ORDINARY]
        ways[name] = {"time": spread(values), "ratio": ratio(values, times[ORDINARY]), "correct": same}
    return {"huge_mib": mib, "ways": ways}
