"""Compares the step of other optimizer packages that run on a CPU with ours, on the parameter shapes of known models.

All are timed once per round, in changing order, in one process and on the same tensors; each is checked against
float64 first. One that takes seconds gets fewer rounds. What does not run is listed with the reason that it gave.
`make bench-peers` sets up an environment with all of them. `--setup` measures in place of steps how long each takes
from `pip install` to the end of its first step.

The results of a model and an optimizer replace those in `peers.json`; the others stay there.
"""

import argparse
import gc
import importlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.peers.arena import LIMIT_S, PeerArena, judgement, state_bytes
from benchmarks.peers.chart import draw_peers
from benchmarks.peers.list import PEERS
from benchmarks.peers.pace import Pace
from benchmarks.peers.record import keep
from benchmarks.peers.setup import measure_setup
from benchmarks.shared.measure import Spread, ratio
from benchmarks.shared.options import add_names, begin, make_parser, positive
from benchmarks.shared.report import Case, make_progress, make_table, number, spread_text
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import OURS, RULES
from benchmarks.step.run import QUICK_ROUNDS, measure

THREADS = 2
MINUTES = 10
FEWEST_ROUNDS = 3
SECONDS_EACH = 2.0  # of rounds, for each peer on each model, but for the fewest rounds
CACHE = Path(sys.prefix) / "cache"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = make_parser(__doc__)
    add_names(parser, "--model", list(MODELS), "which shapes (default: all)")
    add_names(parser, "--optimizer", list(RULES), "which optimizers (default: all)")
    add_names(parser, "--peers", list(PEERS), "which implementations, beside ours (default: all)")
    parser.add_argument("--limit", type=positive, default=LIMIT_S, help="seconds after which a first step is given up")
    parser.add_argument(
        "--minutes",
        type=positive,
        default=MINUTES,
        help=f"how long all should take: nothing is compiled in the later half (default: {MINUTES})",
    )
    parser.add_argument("--setup", action="store_true", help="measure installing and the first step (minutes)")
    parser.set_defaults(threads=THREADS)
    return parser.parse_args(arguments)


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


def rounds_of(seconds: float, case: Case, args: argparse.Namespace) -> int:
    """How many rounds a peer is measured in, by the time of its step."""
    model = MODELS[case[0]]
    if args.rounds or args.quick:
        return int(args.rounds or QUICK_ROUNDS)
    return max(FEWEST_ROUNDS, min(model.rounds, int(SECONDS_EACH / (seconds * model.repeats))))


def compare(case: Case, names: Sequence[str], pace: Pace, args: argparse.Namespace) -> dict[str, Any]:
    """Checks and times the peers on the shapes of a model; the result is a JSON object, times in microseconds."""
    model, rule = MODELS[case[0]], case[1]
    reasons = {name: PEERS[name].why_not(rule) or pace.why_not(name, case) for name in names}
    missing = {name: why for name, why in reasons.items() if why}
    arena = PeerArena(model, rule, args.limit)
    verdicts = arena.check([name for name in names if name not in missing])
    missing |= arena.failures
    calls = {name: arena.step(name) for name in names if name not in missing}
    last = {name: arena.seconds[name][-1] for name in calls}
    rounds = {name: rounds_of(last[name], case, args) for name in calls}
    times = measure(arena, calls, rounds, model.repeats, warm_up=1)
    variants = {}
    for name, values in times.items():
        time = Spread.of(values)
        pace.note(name, case, time.median / 1e6)
        variants[name] = {
            "time": asdict(time),
            "ratio": asdict(ratio(values, times[OURS][: len(values)])),
            "rounds": len(values),
            **asdict(verdicts[name]),
            "result": judgement(verdicts[name].correct, verdicts[name].error.overall, PEERS[name].bits),
            "state_bytes_per_element": state_bytes(arena.optimizers[name]) / model.elements,
            "first_step_s": arena.seconds[name][0],
            "from_cache": name in arena.from_cache,
        }
    return {"model": case[0], "optimizer": rule, "variants": variants, "missing": missing}


def result_table(result: Mapping[str, Any]) -> Table:
    """A row for each peer that runs: time, ratio to ours, error, memory, first step."""
    rows = [
        (
            f"[bold]{name}[/]" if name == OURS else name,
            spread_text(Spread(**figures["time"])),
            spread_text(Spread(**figures["ratio"])),
            f"{figures['error']['overall']:.1e}",
            f"{figures['error']['worst']:.1e}",
            number(figures["state_bytes_per_element"]),
            number(figures["first_step_s"]),
            figures["result"],
        )
        for name, figures in result["variants"].items()
    ]
    title = f"{result['model']}, {RULES[result['optimizer']].class_name}"
    return make_table(title, ("", "time, µs", "ratio", "error", "worst", "state, B", "first step, s", "result"), rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison; the exit status is 1 if a step of ours was wrong."""
    args = parse(arguments)
    prepare()
    console, machine = begin(args)
    path = args.output / "peers.json"
    settings = {"rounds": args.rounds, "quick": args.quick, "limit": args.limit}
    names = list(dict.fromkeys((OURS, *(args.peers or PEERS))))
    if args.setup:
        for name in args.peers or PEERS:
            keep(path, measure_setup(name, console), machine, settings)
        return 0
    good, pace = True, Pace(args.minutes)
    with make_progress(console) as progress:
        cases = [(model, rule) for rule, model in product(args.optimizer or RULES, args.model or MODELS)]
        bar = progress.add_task("", total=len(cases))
        for case in cases:
            progress.update(bar, description=", ".join(case))
            result = compare(case, names, pace, args)
            good &= result["variants"].get(OURS, {}).get("correct", False)
            keep(path, result, machine, settings)
            show(console, result)
            torch._dynamo.reset()
            gc.collect()
            progress.advance(bar)
    draw_peers(json.loads(path.read_text()), args.output / "peers.png")
    console.print(f"results written to {args.output}")
    return int(not good)


def show(console: Console, result: Mapping[str, Any]) -> None:
    """Prints a result, and what is not in it."""
    console.print(result_table(result))
    for name, why in result["missing"].items():
        console.print(f"  {name}: {why}", markup=False)
    console.print()


if __name__ == "__main__":
    raise SystemExit(main())
