"""How long does the step alone take, variant against variant, on the parameter shapes of known models?

All variants and the streaming limit (the same memory traffic with almost no arithmetic, `shared/probe.cpp`) are timed
once per round, in changing order, on the same tensors; a ratio is the median of the ratios within the rounds. Small
models are timed over several steps in a row, since a single step of microseconds would mostly measure what the variant
before it has left in the caches: `--repeats 1` measures that. A variant that takes longer than --seconds on a model is
in no further round there, and its row says so.

Output: a table a case, `compare_step.json`; exit status 1 if a step of ours was wrong.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

from benchmarks.shared.arena import OURS_TO_ZERO, STEP_VARIANTS, Arena, figures_of
from benchmarks.shared.files import save_json
from benchmarks.shared.measure import time_rounds
from benchmarks.shared.options import Parser, begin, positive
from benchmarks.shared.report import Table, each, error_text, is_wrong, result_text
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import LIMIT, OURS, RULES

WARM_UP = 3
COLUMNS = {"time, µs": "time", "ratio": "ratio", "GB/s": "gb_per_s", "of the limit": "limit_share",
           "error": error_text, "result": result_text}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    lines = (f"  {name:12} {len(m.shapes):3} tensors, {m.elements:,} elements" for name, m in MODELS.items())
    parser = Parser(__doc__, "\n".join(("models:", *lines)), rounds=(None, 5))
    parser.add_names("--model", MODELS, "which shapes (default: all)")
    parser.add_names("--optimizer", RULES, "which optimizers (default: adam sgd)")
    parser.add_names("--variants", STEP_VARIANTS, "which implementations (default: all)")
    parser.add_limit("--seconds", 40.0, 1.0, "of a variant's steps on one model")  # the longest takes 18
    parser.add_argument(
        "--repeats",
        type=positive,
        help="calls in a row per measurement, sharing the caches between them (default: 10 or 20 for small models, "
        "1 for large; 1 shows each step as a training loop meets it, with none of its data in the nearest cache)",
    )
    args = parser.parse(arguments)
    console, machine = begin(args)
    settings = {"rounds": args.rounds, "repeats": args.repeats, "quick": args.quick}
    results: list[dict[str, Any]] = []
    for case in each(console, list(product(args.model or MODELS, args.optimizer or ("adam", "sgd")))):
        model, rule = MODELS[case[0]], RULES[case[1]]
        arena, names = Arena(model, case[1]), args.variants or STEP_VARIANTS
        verdicts = arena.check(names)
        repeats, rounds = args.repeats or model.repeats, args.rounds or model.rounds
        calls = {name: arena.step(name) for name in names} | {LIMIT: arena.probe(repeats)}
        times = time_rounds(calls, rounds, repeats, before=arena.write_grads, warm_up=WARM_UP, seconds=args.seconds)
        moved = model.elements * rule.bytes_per_element
        figures = figures_of(times, verdicts, moved, rounds)
        results.append({"model": case[0], "optimizer": case[1], "bytes": moved, "variants": figures})
        title = f"{case[0]}, {rule.class_name}, {moved / 1e6:,.1f} MB a step"
        console.print(Table.of(COLUMNS, figures, title, ours=OURS).rich())
    record = {"machine": machine, "settings": settings, "results": results}
    save_json(args.output / "compare_step.json", record)
    return int(is_wrong([result["variants"].get(name) for result in results for name in (OURS, OURS_TO_ZERO)]))
