"""The machine's streaming limit: `probe.cpp`, compiled where it runs and called on the tensors of a step."""

import ctypes
import functools
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.shared.measure import Call, time_rounds

SOURCE = Path(__file__).with_name("probe.cpp")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-std=c++17")
MAX_STREAMS = 6  # as in probe.cpp
KIB = 1 << 10
# Bytes of each stream in a chunk, whether whoever is free takes the next, whether every other call runs backwards.
SCHEDULES = ((64 * KIB, False, True), (256 * KIB, False, False), (256 * KIB, True, False))
AHEAD = (0, 1 * KIB, 2 * KIB, 4 * KIB)  # bytes
TRIALS, FEWEST_TRIALS = 5, 3  # of each way; the fewer where more take more than its part of `TRIAL_SECONDS`
TRIAL_SECONDS = 2.0


def compile_shared(source: Path, target: Path, flags: Sequence[str], purpose: str) -> None:
    """Compiles a shared library, which `purpose` needs; RuntimeError without a C++ compiler, or if it fails."""
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    compiler = next((path for name in names if name and (path := shutil.which(name))), None)
    if compiler is None:
        raise RuntimeError(f"{purpose} needs a C++ compiler: none of $CXX, c++, g++, clang++ found")
    command = [compiler, *flags, "-shared", "-fPIC", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{compiler} could not compile {source.name}:\n{done.stderr}")


@functools.cache
def library() -> ctypes.CDLL:
    """Compiles the probe, and raises what `compile_shared` does."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "probe.so"
        compile_shared(SOURCE, target, FLAGS, "the streaming limit")
        return ctypes.CDLL(str(target))


Table = np.ndarray[tuple[int, int], np.dtype[np.int64]]


class _Way(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("threads", "dynamic", "backwards", "ahead")]


@dataclass(frozen=True)
class Way:
    chunk: int  # bytes of each stream that a thread moves before it turns to the next chunk
    threads: int
    dynamic: bool  # whether whoever is free takes the next chunk; else each thread has its own share
    ahead: int  # how many bytes ahead of the work the streams are fetched; 0 is not at all
    turn: bool  # whether every other call runs backwards, beginning with what the last one left in the caches


def ways(threads: int) -> Iterator[Way]:
    """The ways that are tried: all of them in all threads, and one in a single thread, for what is tiny."""
    for (chunk, dynamic, turn), ahead in product(SCHEDULES, AHEAD):
        yield Way(chunk, threads, dynamic, ahead, turn)
    if threads > 1:
        yield Way(64 * KIB, 1, False, 0, True)


def cut(streams: Sequence[Sequence[Tensor]], size: int) -> Table:
    """The table of chunks of at most `size` bytes, as `Chunk` in `probe.cpp`: addresses (unused ones 0), a length."""
    rows = []
    for tensors in zip(*streams, strict=True):
        addresses = [t.data_ptr() for t in tensors]
        for begin in range(0, tensors[0].nbytes, size):
            row = [address + begin for address in addresses]
            rows.append([*row, *[0] * (MAX_STREAMS - len(row)), min(size, tensors[0].nbytes - begin)])
    return np.array(rows, dtype=np.int64)


class Probe:
    """The traffic of one step with almost no arithmetic, in the fastest of several ways.

    Args:
        kind: "step", whose last stream is read and all others are read and written; or "scan", whose only one is read.
        streams: Contiguous tensors of one dtype, one list per stream; a step leaves their values as they are.
        repeats: Calls in a row of each of the `trials` of a way, sharing the caches between them.
        chosen: The ways; all those of torch's number of threads if None.
    """

    def __init__(
        self,
        kind: str,
        streams: Sequence[Sequence[Tensor]],
        repeats: int = 1,
        trials: int = TRIALS,
        chosen: Sequence[Way] | None = None,
    ) -> None:
        chosen = list(chosen or ways(torch.get_num_threads()))
        self.streams, self.written = streams, len(streams) - 1
        self.function = getattr(library(), kind)
        self.function.restype = None
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self.function.argtypes = [pointer, size, ctypes.c_int, pointer, ctypes.c_uint64]
        self.tables = {size: cut(streams, size) for size in {way.chunk for way in chosen}}
        self.calls = {way: self.call(way) for way in chosen}
        self.ranking = self.rank(repeats, trials) if len(chosen) > 1 else chosen

    def call(self, way: Way) -> Call:
        """What moves the bytes in one way."""
        table = self.tables[way.chunk]
        orders = [_Way(way.threads, way.dynamic, backwards, way.ahead) for backwards in (False, way.turn)]
        turns = cycle([(table.ctypes.data, len(table), self.written, ctypes.byref(order), 0) for order in orders])
        return lambda: self.function(*next(turns))

    def rank(self, repeats: int, trials: int) -> list[Way]:
        each = TRIAL_SECONDS / len(self.calls)
        times = time_rounds(self.calls, trials, repeats, seconds=each, fewest=min(trials, FEWEST_TRIALS))
        return sorted(times, key=lambda way: statistics.median(times[way]))

    def __call__(self) -> None:
        """Moves the bytes in the way that was the fastest."""
        self.calls[self.ranking[0]]()
