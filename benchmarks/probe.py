"""The machine's streaming limit: `probe.cpp`, compiled where it runs and called on the tensors of a step."""

import ctypes
import functools
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from measure import CpuClock, interleaved, time_call

SOURCE = Path(__file__).with_name("probe.cpp")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-std=c++17")
CHUNK_SIZES = (4096, 16384, 65536)
TRIALS = 7


def compile_shared(source: Path, target: Path, flags: Sequence[str], purpose: str) -> None:
    """Compiles `source` to the shared library `target`, which `purpose` needs.

    Raises:
        RuntimeError: There is no C++ compiler, or it fails; the message says so.
    """
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
    """Compiles the probe.

    Raises:
        RuntimeError: As `compile_shared` does.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "probe.so"
        compile_shared(SOURCE, target, FLAGS, "the streaming limit")
        return ctypes.CDLL(str(target))


def cut(streams: Sequence[Sequence[Tensor]], size: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """The table of chunks, as `Chunk` in `probe.cpp`: four addresses (unused ones 0) and a length per row."""
    rows = []
    for tensors in zip(*streams, strict=True):
        for begin in range(0, tensors[0].numel(), size):
            addresses = [t.data_ptr() + 4 * begin for t in tensors]
            rows.append([*addresses, *[0] * (4 - len(addresses)), min(size, tensors[0].numel() - begin)])
    return np.array(rows, dtype=np.int64)


Way = tuple[int, bool]  # elements in a chunk, and whether threads take chunk after chunk or a fixed share each
WAYS: tuple[Way, ...] = tuple(product(CHUNK_SIZES, (False, True)))


class Probe:
    """The traffic of one step with almost no arithmetic, in the fastest of several ways to share it out.

    Args:
        kind: "adam", "sgd" (with momentum) or "fill".
        streams: Contiguous fp32 tensors, one list per stream in the order of `probe.cpp`; values stay as they are
            but for "fill", which writes zeros.
        threads: How many; torch's number if None.
        ways: Those to choose from.
        trials: Calls of each way that it is chosen by.

    Attributes:
        way: The one chosen.
    """

    def __init__(
        self,
        kind: str,
        streams: Sequence[Sequence[Tensor]],
        threads: int | None = None,
        ways: Sequence[Way] = WAYS,
        trials: int = TRIALS,
    ) -> None:
        self.streams = streams
        self.chunks = {size: cut(streams, size) for size in {size for size, _ in ways}}
        function = getattr(library(), kind)
        function.restype = None
        function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_bool] + 2 * [ctypes.c_float]
        threads = threads or torch.get_num_threads()
        calls = {
            (size, dynamic): functools.partial(
                function, self.chunks[size].ctypes.data, len(self.chunks[size]), threads, dynamic, 1.0, 0.0
            )
            for size, dynamic in ways
        }
        times: dict[Way, list[float]] = {way: [] for way in ways}
        clock = CpuClock()
        for way in interleaved(list(ways), trials if len(ways) > 1 else 0):
            times[way].append(time_call(calls[way], clock))
        self.way = min(ways, key=lambda way: statistics.median(times[way] or [0.0]))
        self.call = calls[self.way]

    def __call__(self) -> None:
        """Moves the bytes."""
        self.call()
