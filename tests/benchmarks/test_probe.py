"""The streaming limit (``benchmarks/shared/probe.cpp``): it moves every byte, in full vectors, and changes nothing."""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.shared import probe

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="compiles the limit")


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("ahead", [0, 2048])
@pytest.mark.parametrize("written", [1, 2, 3, 4])
def test_the_limit_moves_every_byte(written: int, ahead: int, dynamic: bool, backwards: bool) -> None:
    sizes = (0, 1, 31, 32, 1000, 40001)  # of 2-byte elements: tails too
    before = [[torch.randint(-9999, 9999, (n,), dtype=torch.int16) for n in sizes] for _ in range(written + 1)]
    streams = [[t.clone() for t in tensors] for tensors in before]
    table = probe.cut(streams, 4096)
    step = probe.library().step
    step.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64]
    way = probe._Way(2, dynamic, backwards, ahead)
    arguments = table.ctypes.data, len(table), written, ctypes.addressof(way)

    step(*arguments, 0)
    assert all(all(map(torch.equal, *pair)) for pair in zip(before, streams, strict=True))
    step(*arguments, 2**64 - 1)  # as if zero were not 0: each bit of the streams shows that it was visited
    for k, tensors in enumerate(streams):
        for at, (new, old) in enumerate(zip(tensors, before[k], strict=True)):
            expected = old if k == written else old ^ before[written][at] if k == 0 else ~old
            assert torch.equal(new, expected)


@pytest.mark.parametrize("ahead", [0, 2048])
@pytest.mark.parametrize("size", [1, 63, 64, 1000, 40001])
def test_the_limit_reads_every_byte(size: int, ahead: int) -> None:
    stream = torch.randint(-128, 127, (size,), dtype=torch.int8)
    before = stream.clone()
    table = probe.cut([[stream]], 4096)
    way = probe._Way(2, False, False, ahead)
    scan = probe.library().scan
    scan.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64]
    scan(table.ctypes.data, len(table), 0, ctypes.addressof(way), 0)
    assert torch.equal(stream, before)
    scan(table.ctypes.data, len(table), 0, ctypes.addressof(way), 1)  # as if zero were not 0: then it says what it read
    for new, old in zip(stream.split(4096), before.split(4096), strict=True):
        assert new[0] == functools.reduce(torch.bitwise_xor, old)
        assert torch.equal(new[1:], old[1:])


def test_every_other_call_turns_around_where_it_should() -> None:
    streams = [[torch.rand(100_000)] for _ in range(3)]
    some = probe.Probe("step", streams, repeats=2)
    assert sorted(map(repr, some.ranking)) == sorted(map(repr, probe.ways(torch.get_num_threads())))
    seen: list[bool] = []
    some.function = lambda *arguments: seen.append(arguments[3]._obj.backwards)
    for way in some.ranking:
        seen.clear()
        for _ in range(4):
            some.calls[way]()
        assert seen == ([0, 1, 0, 1] if way.turn else [0, 0, 0, 0])


def width() -> str:
    """The widest vector registers of this machine."""
    flags = Path("/proc/cpuinfo").read_text()
    return "zmm" if " avx512f" in flags else "ymm" if " avx2" in flags else "xmm"


@pytest.mark.skipif(shutil.which("objdump") is None, reason="reads machine code")
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="asks the system for instruction sets")
def test_the_limit_is_vectorised(tmp_path: Path) -> None:
    target = tmp_path / "probe.so"
    probe.compile_shared(probe.SOURCE, target, probe.FLAGS, "the test")
    text = subprocess.run(["objdump", "-dC", str(target)], capture_output=True, text=True, check=True).stdout
    functions = dict(
        re.findall(r"^[0-9a-f]+ <[^\n]*step_chunk<(\d)>[^\n]*>:\n(.*?)\n\n", text, re.DOTALL | re.MULTILINE)
    )
    assert sorted(functions) == ["1", "2", "3", "4", "5"]
    for written, body in functions.items():
        stores = re.findall(rf"\tv?mov[a-z0-9]+ +%{width()}\d+,[^\n]*\(", body)
        assert len(stores) >= 2 * int(written), f"{written} streams, with and without fetching ahead"
