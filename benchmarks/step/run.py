"""How long does the step alone take, variant against variant, on the parameter shapes of known models?

All variants and the streaming limit (the same memory traffic with almost no arithmetic, `shared/probe.cpp`) are timed
once per round, in changing order, on the same tensors; a ratio is the median of the ratios within the rounds. Small
models are timed over several steps in a row, since a single step of microseconds would mostly measure what the variant
before it has left in the caches: `--repeats 1` measures that. A variant that takes longer than --seconds on a model is
in no further round there, and its row says so.

Output: a table a case, `compare_step.json`; exit status 1 if a step of ours was wrong.
"""

import argparse
from collections.abc import Iterator
from itertools import product

from benchmarks.shared.arena import STEP_VARIANTS, Arena, figures_of
from benchmarks.shared.files import Record
from benchmarks.shared.measure import time_rounds
from benchmarks.shared.options import Parser, positive, question
from benchmarks.shared.report import Table, each, result_text
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import ALL, ALL_RULES, LIMIT, MORE_RULES, OURS, RULES, VARIANTS, chosen

WARM_UP = 3
COLUMNS = {"time, µs": "time", "ratio": "ratio", "GB/s": "gb_per_s", "of the limit": "limit_share",
           "error": "error.overall", "result": result_text}  # fmt: skip


def add_options(parser: Parser) -> None:
    parser.add_names("--optimizer", (*RULES, *MORE_RULES, ALL), "which (default: adam sgd)")
    parser.add_limit("--seconds", 40.0, 1.0, "of a variant's steps on one model")  # the longest takes 18
    parser.add_argument(
        "--repeats",
        type=positive,
        help="calls in a row per measurement, sharing the caches between them (default: 10 or 20 for small models, "
        "1 for large; 1 shows each step as a training loop meets it, with none of its data in the nearest cache)",
    )


def measure(args: argparse.Namespace) -> Iterator[Record]:
    results: list[Record] = []
    for case in each(list(product(args.model or MODELS, chosen(args.optimizer, ("adam", "sgd"))))):
        model, rule = MODELS[case[0]], ALL_RULES[case[1]]
        arena = Arena(model, case[1])
        names = [x for x in args.variants or STEP_VARIANTS if x not in VARIANTS or VARIANTS[x].has(case[1])]
        verdicts = arena.check(names)
        repeats, rounds = args.repeats or model.repeats, args.rounds or model.rounds
        calls = {name: arena.step(name) for name in names} | {LIMIT: arena.probe(repeats)}
        times = time_rounds(calls, rounds, repeats, before=arena.write_grads, warm_up=WARM_UP, seconds=args.seconds)
        moved = model.elements * rule.bytes_per_element
        figures = figures_of(times, verdicts, moved, rounds)
        results.append({"model": case[0], "optimizer": case[1], "bytes": moved, "variants": figures})
        yield {"results": results}


def tables(record: Record) -> Iterator[Table]:
    for result in record["results"]:
        name = ALL_RULES[result["optimizer"]].class_name
        title = f"{result['model']}, {name}, {result['bytes'] / 1e6:,.1f} MB a step"
        yield Table.of(COLUMNS, result["variants"], title, ours=OURS)


models = "\n".join(f"  {name:12} {len(m.shapes):3} tensors, {m.elements:,} elements" for name, m in MODELS.items())
main = question(
    __doc__, "compare_step", measure, tables, {"--model": MODELS, "--variants": STEP_VARIANTS}, add_options,
    epilog=f"models:\n{models}", rounds=(None, 5),
)  # fmt: skip
