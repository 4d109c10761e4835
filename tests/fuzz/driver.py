"""Runs the cases of a fuzzer, each from a seed of its own, for as long as there is time."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from fusedoptim import native


def main(run: Callable[[int], str], doc: str) -> None:
    """Run cases until the time is over; the last one named is the one that ended the process.

    Args:
        run: Runs the case of a seed, and says how it ended.
        doc: For ``--help``.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--cases", type=int, help="run so many, whatever time it takes")
    parser.add_argument("--seed", type=int, default=0, help="of the first case; case n has seed + n")
    parser.add_argument("--log", type=Path, help="where to note the seed before each case, to find one that crashes")
    args = parser.parse_args()
    assert native.available(), native.why_missing()
    torch.set_num_threads(2)
    until, seed, outcomes = time.monotonic() + args.seconds, args.seed, Counter[str]()
    while time.monotonic() < until if args.cases is None else seed < args.seed + args.cases:
        if args.log:
            args.log.write_text(str(seed))
        outcomes[run(seed)] += 1
        seed += 1
    print(f"{seed - args.seed} cases from seed {args.seed}: {dict(outcomes)}")
