"""``keep_freed_memory``: what it does to a process, and that nothing is done without it or where malloc is another."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fusedoptim
from fusedoptim import malloc

PAGE = 4096
SIZES = [33 << 20, 33 << 20]  # bytes of each gradient: glibc always maps such blocks by themselves
WARM_UP, ITERATIONS = 8, 6
glibc = pytest.mark.skipif(malloc._glibc() is None, reason="needs glibc")

# Trains in a process of its own, since the call lasts as long as the process.
TRAINING = f"""
import json, resource, sys
import torch
import fusedoptim
from fusedoptim.malloc import _bytes_in_heap, _glibc

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def train():
    params = [torch.nn.Parameter(torch.ones(size // 4)) for size in {SIZES}]
    optimizer = fusedoptim.SGD(params, lr=0.5)
    for i in range({WARM_UP} + {ITERATIONS}):
        if i == {WARM_UP}:
            before = faults()
        optimizer.zero_grad()
        sum(p.sum() * (i + 1) for p in params).backward()
        optimizer.step()
    return faults() - before, [p.double().sum().item() for p in params]

before = _bytes_in_heap(_glibc())
returned = fusedoptim.keep_freed_memory() if "keep" in sys.argv else None
taken = _bytes_in_heap(_glibc()) - before
faults_of_training, sums = train()
print(json.dumps({{"returned": returned, "taken": taken, "faults": faults_of_training, "sums": sums}}))
"""


def train(*arguments: str, preload: Path | None = None) -> dict[str, Any]:
    environment = os.environ | ({"LD_PRELOAD": str(preload)} if preload else {})
    command = [sys.executable, "-c", TRAINING, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


@glibc
def test_page_faults_fall_and_results_stay() -> None:
    without, kept = train(), train("keep")
    assert kept["returned"] is True
    assert abs(kept["taken"]) < 1 << 20  # the block of the trial is free again
    written = ITERATIONS * sum(SIZES) // PAGE  # pages of gradients, of which each must be faulted in anew without it
    assert without["faults"] > 0.9 * written
    assert kept["faults"] < 0.4 * written  # a block now and then, while the heap finds its size
    assert kept["sums"] == without["sums"]


@glibc
def test_import_and_steps_leave_malloc_as_it_is() -> None:
    text = """
import ctypes, torch, fusedoptim
from fusedoptim.malloc import _bytes_in_heap, _glibc
p = torch.nn.Parameter(torch.ones(3))
optimizer = fusedoptim.Adam([p])
p.grad = torch.ones(3)
optimizer.step(zero_grad="to_none")
libc = _glibc()
before = _bytes_in_heap(libc)
block = torch.empty(40 << 20, dtype=torch.uint8)
print(_bytes_in_heap(libc) - before)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40 << 20  # the block is mapped, not in the heap


def compile_malloc(folder: Path) -> Path:
    """An allocator to preload that is not glibc's: it hands out mapped memory, and knows no ``mallopt``."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, target = folder / "other.c", folder / "other.so"
    source.write_text(OTHER_MALLOC)
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", str(source), "-o", str(target)], check=True)
    return target


OTHER_MALLOC = r"""
#include <stddef.h>
#include <string.h>
#include <errno.h>
#include <sys/mman.h>
#include <stdint.h>
/* A bump allocator: sizes lie before the blocks, nothing is reused. */
static char *at, *end;
static volatile int lock;
static void* take(size_t alignment, size_t size) {
  while (__sync_lock_test_and_set(&lock, 1)) {}
  if (alignment < 16) alignment = 16;
  char* start = (char*)(((uintptr_t)at + 16 + alignment - 1) / alignment * alignment);
  if (!at || start + size > end) {
    size_t room = size + alignment + (64 << 20);
    at = mmap(0, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    end = at + room;
    start = (char*)(((uintptr_t)at + 16 + alignment - 1) / alignment * alignment);
  }
  ((size_t*)start)[-1] = size;
  at = start + size;
  __sync_lock_release(&lock);
  return start;
}
void* malloc(size_t size) { return take(16, size); }
void free(void* block) { (void)block; }
void* calloc(size_t n, size_t size) { return take(16, n * size); }
void* realloc(void* block, size_t size) {
  void* other = take(16, size);
  if (block) { size_t old = ((size_t*)block)[-1]; memcpy(other, block, old < size ? old : size); }
  return other;
}
void* memalign(size_t alignment, size_t size) { return take(alignment, size); }
void* aligned_alloc(size_t alignment, size_t size) { return take(alignment, size); }
int posix_memalign(void** block, size_t alignment, size_t size) { *block = take(alignment, size); return 0; }
size_t malloc_usable_size(void* block) { return block ? ((size_t*)block)[-1] : 0; }
"""


@glibc
def test_another_malloc_is_noticed(tmp_path: Path) -> None:
    assert train("keep", preload=compile_malloc(tmp_path))["returned"] is False


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_nothing_is_touched_on_other_systems(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_: pytest.fail("a library was loaded"))
    assert fusedoptim.keep_freed_memory() is False


def test_musl_is_no_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    calls: list[Any] = []
    musl = SimpleNamespace(malloc=calls.append, free=calls.append)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_: musl)
    assert fusedoptim.keep_freed_memory() is False
    assert calls == []


@glibc
@pytest.mark.parametrize("setting", [malloc._M_MMAP_MAX, malloc._M_TRIM_THRESHOLD])
def test_a_refused_setting_is_told(setting: int, monkeypatch: pytest.MonkeyPatch) -> None:
    libc = SimpleNamespace(mallopt=lambda which, _: int(which != setting))
    monkeypatch.setattr(malloc, "_glibc", lambda: libc)
    monkeypatch.setattr(malloc, "_keeps_large_blocks", lambda _: True)
    assert fusedoptim.keep_freed_memory() is False


@glibc
def test_older_glibc_counts_in_int() -> None:
    libc = malloc._glibc()
    old = SimpleNamespace(mallinfo=libc.mallinfo)
    assert abs(malloc._bytes_in_heap(old) - malloc._bytes_in_heap(libc)) < 1 << 20
