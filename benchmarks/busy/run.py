"""How does a step of Adam fare where the processor is not its own: busy cores, more threads than cores, a forked child?

busy     other processes spin in plain arithmetic, none, one or two of them in turn within each round. Steps follow
         one another with nothing between them.
threads  torch's threads set to 1, 2, 3, 4 and 8, each in a process of its own, taking turns.
fork     a process that has stepped with several threads forks, and the child steps. A child that hangs is said to.

Output: a table for each part and model, each kept by itself in `busy.json`, with the machine it was measured on; exit
status 1 if a step of ours was wrong or hung.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from benchmarks.busy.fork import fork_part
from benchmarks.busy.load import load_part
from benchmarks.busy.threads import threads_part
from benchmarks.shared.options import Parser, begin
from benchmarks.shared.report import Record, Table, claims_table, keep, number

PARTS: Mapping[str, Callable[[str, argparse.Namespace], dict[str, Any]]] = {
    "busy": load_part,
    "threads": threads_part,
    "fork": fork_part,
}
SHAPES = ("tutorial-mlp", "resnet50")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(__doc__, rounds=(6, 2))
    parser.add_names("--part", PARTS, "what is measured (default: all)")
    parser.add_names("--model", SHAPES, "which shapes (default: all)")
    parser.add_argument("--steps", type=int, default=500, help="steps of ours in each state at least, over all rounds")
    parser.add_argument("--limit", type=float, default=1.0, help="seconds of each series, longer for ours if need be")
    args = parser.parse(arguments)
    if args.quick:
        args.steps, args.limit = min(args.steps, 40), 0.2
    return args


def rows_of(results: Sequence[Record], row: str, column: str, *keys: str) -> Iterator[list[str]]:
    """A row for each value of `row`; for each value of `column` and each key, the median."""
    found = {(str(r[row]), str(r[column])): r for r in results}
    rows, columns = (dict.fromkeys(str(r[name]) for r in results) for name in (row, column))
    for name in rows:
        cells = []
        for other, key in product(columns, keys):
            value = found[name, other]["largest"]["ratio"] if key == "largest" else found[name, other][key]
            wrong = found[name, other].get("correct") is False
            cells.append("WRONG" if wrong else number(value["median"]))
        yield [name, *cells]


def outcome(result: Record) -> str:
    """What became of a forked child."""
    if "failure" in result:
        return "hangs" if "hang" in result["failure"] else "fails"
    return f"{result['ratio']['median']:.2f} x" if result["correct"] else "WRONG"


def table_of(part: str, model: str, found: Record, threads: int) -> Table:
    """The results of a part on the shapes of a model; `threads` is torch's own choice."""
    results = found["results"]
    if part == "busy":
        states = dict.fromkeys(r["state"] for r in results)
        header = [f"{model}, µs", *map(", ".join, product(states, ("median", "mean", "largest / median")))]
        return Table(header, rows_of(results, "variant", "state", "time", "mean", "largest"))
    if part == "threads":
        names = (f"{count} thread{'s' * (count > 1)}" for count in dict.fromkeys(r["threads"] for r in results))
        return Table([model, *names], rows_of(results, "variant", "threads", "time"))
    rows = ([f"{r['variant']}, {r['way']}", str(r["child_threads"] or threads), outcome(r)] for r in results)
    return Table([model, "threads", "child"], rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts; the exit status is 1 if a step of ours was wrong or hung."""
    args = parse(arguments)
    console, machine = begin(args)
    settings = {name: getattr(args, name) for name in ("rounds", "steps", "limit", "quick")}
    good, claims = True, []
    for part, model in product(args.part or PARTS, args.model or SHAPES):
        result = PARTS[part](model, args)
        good &= result["good"]
        claims += result["claims"]
        keep(args.output / "busy.json", part, model, {"machine": machine, "settings": settings, **result})
        console.print(table_of(part, model, result, machine["threads"]).rich())
    if claims:
        console.print(claims_table(claims).rich())
    return int(not good)
