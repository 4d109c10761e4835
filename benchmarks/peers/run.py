"""How do the steps of other optimizer packages that run on a CPU compare with ours, on the shapes of known models?

All are timed once per round, in changing order, in one process and on the same tensors; each is checked against
float64 first. State that is torch's under another name is shared as well; what a peer keeps in 8 or 4 bits is its own.
One that takes seconds gets fewer rounds, at least three. What does not run is listed with the reason that it gave.
`make bench-peers` sets up an environment with all of them.

Output: a table for all models and optimizers, `peers.json`; exit status 1 if a step of ours was wrong.
"""

import argparse
import gc
import importlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.arena import LIMIT_S, PeerArena, judgement, state_bytes
from benchmarks.peers.list import PACKAGES, PEERS
from benchmarks.shared.arena import figures_of
from benchmarks.shared.files import Record
from benchmarks.shared.measure import time_rounds
from benchmarks.shared.options import Parser, question
from benchmarks.shared.report import Table, bold, each, number
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import OURS, RULES

FEWEST_ROUNDS = 3
SECONDS_EACH = 2.0  # of rounds, for each peer on each model, but for the fewest rounds
COMPILING = 0.5  # of the time, after which nothing more is compiled
CACHE = Path(sys.prefix) / "cache"


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


def why_not(name: str, rule: str, late: bool) -> str | None:
    """Why a peer is not measured, if so; `late`: nothing more is compiled."""
    too_late = "left out for time: too little was left to compile it (--minutes)"
    return PEERS[name].why_not(rule) or (too_late if late and PEERS[name].compiles else None)


def compare(case: tuple[str, str], names: Sequence[str], late: bool, rounds: int | None) -> dict[str, Any]:
    """Checks and times the peers on the shapes of a model; the result is a JSON object, times in microseconds."""
    model, rule = MODELS[case[0]], case[1]
    missing = {name: why for name in names if (why := why_not(name, rule, late))}
    arena = PeerArena(model, rule, LIMIT_S)
    verdicts = arena.check([name for name in names if name not in missing])
    missing |= arena.failures
    calls = {name: arena.step(name) for name in names if name not in missing}
    how: dict[str, Any] = {"before": arena.write_grads, "warm_up": 1, "seconds": SECONDS_EACH}
    times = time_rounds(calls, rounds or model.rounds, model.repeats, fewest=rounds or FEWEST_ROUNDS, **how)
    variants = figures_of(times, verdicts)
    for name, figures in variants.items():
        figures["result"] = judgement(verdicts[name].correct, verdicts[name].error.overall, PEERS[name].bits)
        figures["state_bytes_per_element"] = state_bytes(arena.optimizers[name]) / model.elements
    return {"model": case[0], "optimizer": rule, "variants": variants, "missing": missing}


def cell(figures: Record | None) -> str:
    """A time in microseconds and how many times ours it is; bold where that is less than once."""
    if figures is None:
        return "-"
    times = figures["ratio"]["median"]
    text = bold(f"{number(figures['time']['median'])} ({times:.2f} x)", times < 1)
    return f"WRONG: {text}" if figures["result"] == "WRONG" else text


def rows(record: Record) -> Iterator[list[str]]:
    """A row for each peer with each optimizer, ours first; memory is that on the largest model."""
    for rule, kind in RULES.items():
        results = {result["model"]: result["variants"] for result in record["results"] if result["optimizer"] == rule}
        for name in PEERS:
            if measured := [results[model][name] for model in MODELS if name in results.get(model, ())]:
                yield [
                    f"{kind.class_name}, {name}",
                    *(cell(results.get(model, {}).get(name)) for model in MODELS),
                    *(f"{max(figures['error'][key] for figures in measured):.1e}" for key in ("overall", "worst")),
                    " or ".join(dict.fromkeys(figures["result"] for figures in measured)),
                    number(measured[-1]["state_bytes_per_element"]),
                ]


def tables(record: Record) -> Iterator[Table]:
    yield Table(["µs per step (times ours)", *MODELS, "error", "worst", "result", "state, B"], rows(record))


def not_measured(record: Record) -> Iterator[str]:
    """What did not run, or was left out, and why; one line for all models with the same reason."""
    models: dict[tuple[str, str, str], list[str]] = {}
    for result in record["results"]:
        for name, why in result["missing"].items():
            models.setdefault((name, RULES[result["optimizer"]].class_name, why), []).append(result["model"])
    for (name, rule, why), where in models.items():
        on = "" if len(where) == len(MODELS) else f" on {', '.join(where)}"
        yield f"{name}, {rule}{on}: {why}"


def add_options(parser: Parser) -> None:
    parser.add_names("--peers", PEERS, "which implementations, beside ours (default: all)")
    parser.add_limit("--minutes", 10, 10, "how long all should take: nothing is compiled in the later half")


def measure(args: argparse.Namespace) -> Iterator[Record]:
    prepare()
    versions = dict.fromkeys(PACKAGES, "not installed")
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    results: list[Record] = []
    names = list(dict.fromkeys((OURS, *(args.peers or PEERS))))
    end = time.monotonic() + COMPILING * 60 * args.minutes
    for case in each([(m, rule) for rule, m in product(args.optimizer or RULES, args.model or MODELS)]):
        results.append(compare(case, names, time.monotonic() > end, args.rounds))
        yield {"versions": versions, "results": results, "left_out": list(not_measured({"results": results}))}
        torch._dynamo.reset()
        gc.collect()


main = question(
    __doc__, "peers", measure, tables, {"--model": MODELS, "--optimizer": RULES}, add_options,
    rounds=(None, 5), threads=2,
)  # fmt: skip
