"""The process that `counts.py` runs under callgrind: it imports torch once, which there takes most of the time.

Each way of taking a step is chosen when the package is imported, so each has a child process of its own.
"""

import gc
import os
import sys
import traceback
from pathlib import Path

import torch

PATHS = {"fast": "1", "general": "0"}  # to FUSEDOPTIM_DIRECT


def warm_up() -> None:
    """Has torch load what it loads with the first optimizer, once for all children."""
    param = torch.nn.Parameter(torch.zeros(1))
    param.grad = torch.zeros(1)
    optimizer = torch.optim.Adam([param])
    optimizer.step()
    optimizer.zero_grad()
    torch._foreach_mul_([torch.zeros(1)], 1.0)


def main(client: Path) -> int:
    """Counts in one child per way of taking a step; the exit status is 1 if one of them failed."""
    torch.set_num_threads(1)
    warm_up()
    gc.disable()
    failed = False
    for path, wish in PATHS.items():
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.environ["FUSEDOPTIM_DIRECT"] = wish
                from benchmarks.gate.cases import count_all  # imports fusedoptim, which reads the variable

                count_all(client, path)
                status = 0
            except Exception:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        failed |= os.waitpid(child, 0)[1] != 0
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
