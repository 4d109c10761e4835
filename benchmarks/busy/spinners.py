"""Processes that keep cores busy, and can be halted and sent on between one measurement and the next."""

import os
import signal
import subprocess
import sys
import time

SETTLE = 0.05  # seconds: the scheduler moves what runs to where there is room
# Plain arithmetic, no memory traffic, no library with threads; ends when whoever started it has gone.
SPIN = """
import os
parent, x = os.getppid(), 1
while os.getppid() == parent:
    for _ in range(100_000):
        x = (x * 1103515245 + 12345) & 0x7FFFFFFF
"""


class Spinners:
    """A context within which up to `count` processes spin; at first all of them stand still."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Spinners":
        self.processes = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(self.count)]
        time.sleep(10 * SETTLE)  # their own start is over, and they know their parent
        self.run(0)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def run(self, count: int) -> None:
        """Lets the first `count` of them spin, halts the others, and waits until that is so."""
        for i, process in enumerate(self.processes):
            os.kill(process.pid, signal.SIGCONT if i < count else signal.SIGSTOP)
        time.sleep(SETTLE)
