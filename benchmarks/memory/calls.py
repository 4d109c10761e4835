"""How often a training asks the system for memory, and gives it back: counted by strace, where there is one."""

import re
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from benchmarks.memory.ways import Way
from benchmarks.memory.worker import Server

CALLS = ("brk", "mmap", "munmap", "madvise")
MARK = "getppid"
ITERATIONS = 10


def between_marks(lines: Iterable[str]) -> Counter[str]:
    """Calls of each kind between the first and the last mark in a log of strace, over all threads."""
    names = [found[1] for line in lines if (found := re.match(r"(?:\d+ +)?(\w+)\(", line))]
    marks = [i for i, name in enumerate(names) if name == MARK]
    return Counter(names[marks[0] + 1 : marks[-1]]) if len(marks) > 1 else Counter()


def calls_per_iteration(training: str, way: Way, threads: int) -> dict[str, float]:
    """The calls of one iteration, after some that are not counted."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "calls"
        command = ("strace", "-f", "--seccomp-bpf", "-qq", "-e", f"trace={','.join((*CALLS, MARK))}", "-o", str(log))
        with Server(way.environment, command) as server:
            server.ask(training, way, seconds=0, threads=threads, iterations=ITERATIONS)
        found = between_marks(log.read_text().splitlines())
    return {name: found[name] / ITERATIONS for name in CALLS}
