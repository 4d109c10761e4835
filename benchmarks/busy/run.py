"""How a step of Adam fares where the processor is not its own: busy cores, more threads than cores, a forked child.

busy     other processes spin in plain arithmetic, none, one or two of them in turn within each round. Steps follow
         one another with nothing between them (`--backward` rewrites the gradients with torch's threads before each).
threads  torch's threads set to 1, 2, 3, 4 and 8, each in a process of its own, taking turns.
fork     a process that has stepped with several threads forks, and the child steps. A child that hangs is said to.

Each part and model is kept by itself in `busy.json`, with the machine it was measured on.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.busy.fork import fork_part
from benchmarks.busy.load import load_part
from benchmarks.busy.threads import threads_part
from benchmarks.shared.options import add_names, begin, make_parser
from benchmarks.shared.report import claims_table, save_json

PARTS: Mapping[str, Callable[[str, argparse.Namespace, Console], dict[str, Any]]] = {
    "busy": load_part,
    "threads": threads_part,
    "fork": fork_part,
}
SHAPES = ("tutorial-mlp", "resnet50")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = make_parser(__doc__)
    add_names(parser, "--part", list(PARTS), "what is measured (default: all)")
    add_names(parser, "--model", SHAPES, "which shapes (default: all)")
    parser.add_argument("--steps", type=int, default=500, help="steps of ours in each state at least, over all rounds")
    parser.add_argument("--limit", type=float, default=1.0, help="seconds of each series, longer for ours if need be")
    parser.add_argument("--pin", action="store_true", help="bind the spinning processes to cores, from the first on")
    parser.add_argument("--backward", action="store_true", help="rewrite the gradients before each step")
    args = parser.parse_args(arguments)
    if args.quick:
        args.steps, args.limit = min(args.steps, 40), 0.2
    args.rounds = args.rounds or (2 if args.quick else 6)
    return args


def keep(path: Path, part: str, model: str, result: Mapping[str, Any]) -> None:
    """Puts a result into the file, and leaves the others there."""
    record = json.loads(path.read_text()) if path.exists() else {}
    record.setdefault(part, {})[model] = result
    save_json(path, record)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts; the exit status is 1 if a step of ours was wrong or hung."""
    args = parse(arguments)
    console, machine = begin(args)
    settings = {name: getattr(args, name) for name in ("rounds", "steps", "limit", "pin", "backward", "quick")}
    good, claims = True, []
    for part in args.part or PARTS:
        for model in args.model or SHAPES:
            result = PARTS[part](model, args, console)
            good &= result["good"]
            claims += result["claims"]
            keep(args.output / "busy.json", part, model, {"machine": machine, "settings": settings, **result})
    if claims:
        console.print(claims_table(claims))
    console.print(f"results written to {args.output / 'busy.json'}")
    return int(not good)


if __name__ == "__main__":
    raise SystemExit(main())
