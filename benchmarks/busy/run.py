"""How does a step of Adam fare where the processor is not its own: busy cores, more threads than cores, a forked child?

busy     other processes spin in plain arithmetic, none, one or two of them in turn within each round. Steps follow
         one another with nothing between them.
threads  torch's threads set to 1, 2, 3, 4 and 8, each in a process of its own, taking turns.
fork     a process that has stepped with several threads forks, and the child steps. A child that hangs is reported.

Output: a table for each part and model, each kept by itself in `busy.json`, with the machine it was measured on; exit
status 1 if a step of ours was wrong or hung.
"""

from collections.abc import Iterator, Sequence
from itertools import product

from benchmarks.busy.parts import PARTS
from benchmarks.shared.files import Record, save_part
from benchmarks.shared.options import Parser, begin
from benchmarks.shared.report import Table, number

SHAPES = ("tutorial-mlp", "resnet50")


def rows_of(results: Sequence[Record], column: str, *keys: str) -> Iterator[list[str]]:
    found = {(r["variant"], r[column]): r for r in results}
    variants, columns = (dict.fromkeys(r[name] for r in results) for name in ("variant", column))
    for variant in variants:
        cells = []
        for r, key in product((found[variant, value] for value in columns), keys):
            figures = r["largest"]["ratio"] if key == "largest" else r[key]
            cells.append("WRONG" if r.get("correct") is False else number(figures["median"]))
        yield [variant, *cells]


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
        return Table(header, rows_of(results, "state", "time", "mean", "largest"))
    if part == "threads":
        names = (f"{count} thread{'s' * (count > 1)}" for count in dict.fromkeys(r["threads"] for r in results))
        return Table([model, *names], rows_of(results, "threads", "time"))
    rows = ([f"{r['variant']}, {r['way']}", str(r["child_threads"] or threads), outcome(r)] for r in results)
    return Table([model, "threads", "child"], rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__, rounds=(6, 2))
    parser.add_names("--part", PARTS, "what is measured (default: all)")
    parser.add_names("--model", SHAPES, "which shapes (default: all)")
    parser.add_argument("--steps", type=int, default=500, help="steps of ours in each state at least, over all rounds")
    parser.add_argument("--limit", type=float, default=1.0, help="seconds of each series, longer for ours if need be")
    args = parser.parse(arguments)
    if args.quick:
        args.steps, args.limit = min(args.steps, 40), 0.2
    console, machine = begin(args)
    settings = {name: getattr(args, name) for name in ("rounds", "steps", "limit", "quick")}
    good = True
    for part, model in product(args.part or PARTS, args.model or SHAPES):
        result = PARTS[part](model, args)
        good &= result["good"]
        save_part(args.output / "busy.json", part, model, {"machine": machine, "settings": settings, **result})
        console.print(table_of(part, model, result, machine["threads"]).rich())
    return int(not good)
