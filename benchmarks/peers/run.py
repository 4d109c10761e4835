"""How do the steps of other optimizer packages that run on a CPU compare with ours, on the shapes of known models?

All are timed once per round, in changing order, in one process and on the same tensors; each is checked against
float64 first. State that is torch's under another name is shared as well; what a peer keeps in 8 or 4 bits is its own.
One that takes seconds gets fewer rounds, at least three. What does not run is listed with the reason that it gave.
`make bench-peers` sets up an environment with all of them. `--setup` measures in place of steps how long each takes
from `pip install` to the end of its first step.

Output: a table for each model and optimizer, whose results replace those in `peers.json`; the others stay there.
Exit status 1 if a step of ours was wrong.
"""

import argparse
import gc
import importlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.arena import LIMIT_S, PeerArena, judgement, state_bytes
from benchmarks.peers.list import PACKAGES, PEERS
from benchmarks.peers.setup import measure_setup
from benchmarks.shared.files import Record, load_json, save_json
from benchmarks.shared.measure import ratio, spread, time_rounds
from benchmarks.shared.options import Parser, begin, positive
from benchmarks.shared.report import Case, Table, each, error_text
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import OURS, RULES

MINUTES = 10
FEWEST_ROUNDS = 3
SECONDS_EACH = 2.0  # of rounds, for each peer on each model, but for the fewest rounds
SLOWEST_STEP_S = 10.0
COMPILING = 0.5  # of the time, after which nothing more is compiled
CACHE = Path(sys.prefix) / "cache"
COLUMNS = {"time, µs": "time", "ratio": "ratio", "error": error_text,
           "worst": lambda figures: f"{figures['error']['worst']:.1e}", "state, B": "state_bytes_per_element",
           "first step, s": "first_step_s", "result": "result"}  # fmt: skip


class Pace:
    """What is known of the time, so as not to begin what would last for minutes."""

    def __init__(self, minutes: float) -> None:
        self.minutes, self.begin = minutes, time.monotonic()
        self.least: dict[tuple[str, str], tuple[float, str]] = {}

    def note(self, name: str, case: Case, seconds: float) -> None:
        """Remembers a step; the least time per element is the one that does not count what a tensor costs."""
        per_element = seconds / MODELS[case[0]].elements
        self.least[name, case[1]] = min(self.least.get((name, case[1]), (per_element, case[0])), (per_element, case[0]))

    def why_not(self, name: str, case: Case) -> str | None:
        """Why a peer is not measured on a model, if it would take too long there."""
        per_element, model = self.least.get((name, case[1]), (0.0, ""))
        expected = per_element * MODELS[case[0]].elements
        if expected > SLOWEST_STEP_S:
            return f"left out for time: by its time on {model}, a step takes about {expected:.0f} s"
        if PEERS[name].compiles and time.monotonic() - self.begin > COMPILING * 60 * self.minutes:
            return f"left out for time: too little of {self.minutes:g} minutes was left to compile it (--minutes)"
        return None


def prepare() -> None:
    """Tells the packages where to keep what they compile, and to be quiet about it."""
    with suppress(ImportError):  # DeepSpeed calls it by its name alone
        os.environ["PATH"] = importlib.import_module("ninja").BIN_DIR + os.pathsep + os.environ["PATH"]
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(CACHE / "extensions"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(CACHE / "inductor"))
    # Left by a process that was killed while it compiled: DeepSpeed would wait for it for ever.
    (Path(os.environ["TORCH_EXTENSIONS_DIR"]) / "cpu_adam" / "lock").unlink(missing_ok=True)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def compare(case: Case, names: Sequence[str], pace: Pace, args: argparse.Namespace) -> dict[str, Any]:
    """Checks and times the peers on the shapes of a model; the result is a JSON object, times in microseconds."""
    model, rule = MODELS[case[0]], case[1]
    reasons = {name: PEERS[name].why_not(rule) or pace.why_not(name, case) for name in names}
    missing = {name: why for name, why in reasons.items() if why}
    arena = PeerArena(model, rule, args.limit)
    verdicts = arena.check([name for name in names if name not in missing])
    missing |= arena.failures
    calls = {name: arena.step(name) for name in names if name not in missing}
    how: dict[str, Any] = {"before": arena.write_grads, "warm_up": 1, "seconds": SECONDS_EACH}
    times = time_rounds(calls, args.rounds or model.rounds, model.repeats, fewest=args.rounds or FEWEST_ROUNDS, **how)
    variants = {}
    for name, values in times.items():
        time = spread(values)
        pace.note(name, case, time["median"] / 1e6)
        variants[name] = {
            "time": time,
            "ratio": ratio(values, times[OURS]),
            "rounds": len(values),
            **asdict(verdicts[name]),
            "result": judgement(verdicts[name].correct, verdicts[name].error.overall, PEERS[name].bits),
            "state_bytes_per_element": state_bytes(arena.optimizers[name]) / model.elements,
            "first_step_s": arena.seconds[name][0],
            "from_cache": name in arena.from_cache,
        }
    return {"model": case[0], "optimizer": rule, "variants": variants, "missing": missing}


def remember_compiling(new: Record, old: Record) -> None:
    """Puts the first step that had to compile in place of one that found what that had left in the cache."""
    for name, figures in new["variants"].items():
        before = old["variants"].get(name, {"from_cache": True})
        if figures["from_cache"] and not before["from_cache"]:
            figures |= {"first_step_s": before["first_step_s"], "from_cache": False}


def keep(path: Path, entry: Record, about: Record) -> None:
    """Puts a result into the file, in place of one of the same model and optimizer."""
    record = load_json(path) or {"results": [], "setup": {}}
    if "model" in entry:
        found = {(old["optimizer"], old["model"]): old for old in record["results"]}
        key = entry["optimizer"], entry["model"]
        if key in found:
            remember_compiling(entry, found[key])
        found[key] = {**about, **entry}
        record["results"] = [found[key] for key in product(RULES, MODELS) if key in found]
    else:
        record["setup"] |= {name: {**about, **figures} for name, figures in entry.items()}
    save_json(path, record)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__, rounds=(None, 5), threads=2)
    parser.add_names("--model", MODELS, "which shapes (default: all)")
    parser.add_names("--optimizer", RULES, "which optimizers (default: all)")
    parser.add_names("--peers", PEERS, "which implementations, beside ours (default: all)")
    parser.add_argument("--limit", type=positive, default=LIMIT_S, help="seconds after which a first step is given up")
    text = f"how long all should take: nothing is compiled in the later half (default: {MINUTES})"
    parser.add_argument("--minutes", type=positive, default=MINUTES, help=text)
    parser.add_argument("--setup", action="store_true", help="measure installing and the first step (minutes)")
    args = parser.parse(arguments)
    prepare()
    console, machine = begin(args)
    path = args.output / "peers.json"
    settings = {"rounds": args.rounds, "quick": args.quick, "limit": args.limit}
    versions = dict.fromkeys(PACKAGES, "not installed")
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    about = {"machine": machine, "settings": settings, "versions": versions}
    for name in args.peers or PEERS if args.setup else ():
        keep(path, measure_setup(name, console), about)
    names = list(dict.fromkeys((OURS, *(args.peers or PEERS))))
    good, pace = True, Pace(args.minutes)
    cases = [] if args.setup else [(m, rule) for rule, m in product(args.optimizer or RULES, args.model or MODELS)]
    for case in each(console, cases):
        result = compare(case, names, pace, args)
        good &= result["variants"].get(OURS, {}).get("correct", False)
        keep(path, result, about)
        title = f"{case[0]}, {RULES[case[1]].class_name}"
        console.print(Table.of(COLUMNS, result["variants"], title, ours=OURS).rich())
        for name, why in result["missing"].items():
            console.print(f"  {name}: {why}", markup=False)
        torch._dynamo.reset()
        gc.collect()
    return int(not good)
