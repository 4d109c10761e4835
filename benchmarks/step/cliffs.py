"""What a small oddity costs a step: Adam on 400 tensors of 64 elements, with one thing changed.

`--into docs/benchmarks.md` writes the table into that page. A situation may take 1.5 times the plain step, and where
one parameter is left to torch's own implementation, besides that what it takes there alone: what a torch optimizer for
it adds to a plain step that it follows, as in a loop with two optimizers. Which are above is printed.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fusedoptim
from benchmarks.publish.markdown import table, write_into
from benchmarks.shared.correctness import Error, within
from benchmarks.shared.measure import CpuClock, Spread, interleaved, ratio, time_call
from benchmarks.shared.options import begin, make_parser
from benchmarks.shared.report import machine_line, make_table, number, save_json
from benchmarks.step.cliff_cases import PLAIN, SITUATIONS, Situation

SECTION = "cliffs"
LIMIT = 1.5
STEPS = 3  # of the check
REPEATS = {"ours": 20, "torch": 3, "with": 20}
Times = Mapping[tuple[str, str], Sequence[float]]  # by situation and who: one figure per round


def stepped(situation: Situation, module: Any, wide: bool = False) -> list[Tensor]:
    """The parameters after the steps of the check, complex ones as pairs of numbers."""
    optimizer = situation.optimizer(module, wide)
    for _ in range(STEPS):
        optimizer.step(*situation.arguments)
    params = [p.detach().as_subclass(Tensor) for group in optimizer.param_groups for p in group["params"]]
    return [torch.view_as_real(p) if p.is_complex() else p for p in params]


def is_correct(situation: Situation) -> bool:
    """Whether our steps are no farther from float64 than torch's by more than rounding explains (`correctness.py`)."""
    exact = stepped(situation, torch.optim, wide=True)
    start = [torch.zeros_like(p) for p in exact]  # any: the shares of the way are only compared
    ours, theirs = (Error.of(stepped(situation, module), exact, start) for module in (fusedoptim, torch.optim))
    return within(ours.overall, [theirs.overall]) and within(ours.worst, [theirs.worst])


def measure(rounds: int) -> Times:
    """Microseconds of a step, ours and torch's, and where one parameter is left to torch, a plain step with its own."""
    clock = CpuClock()
    # Fills the gaps that imports have left in memory, in which the first objects made lie scattered and are slower.
    filler = [SITUATIONS[PLAIN].optimizer(fusedoptim) for _ in range(3)]
    optimizers: dict[tuple[str, str], list[Any]] = {}
    for title, situation in SITUATIONS.items():
        optimizers[title, "ours"] = [situation.optimizer(fusedoptim)]
        optimizers[title, "torch"] = [situation.optimizer(torch.optim)]
        if situation.by_torch:
            plain = SITUATIONS[PLAIN].optimizer(fusedoptim)
            optimizers[title, "with"] = [plain, situation.optimizer(torch.optim, alone=True)]
    times: dict[tuple[str, str], list[float]] = {key: [] for key in optimizers}
    for title, who in interleaved(list(optimizers), rounds):
        step = partial(step_each, optimizers[title, who], *SITUATIONS[title].arguments)
        times[title, who].append(time_call(step, clock, REPEATS[who]))
    del filler
    return times


def step_each(optimizers: Sequence[Any], *arguments: Any) -> None:
    """A step of one after the other."""
    for optimizer in optimizers:
        optimizer.step(*arguments)


def results_of(times: Times) -> list[dict[str, Any]]:
    """Each situation beside the plain step of the same round, and whether it takes more than it may."""
    plain = times[PLAIN, "ours"]
    results = []
    for title in SITUATIONS:
        ours = times[title, "ours"]
        with_alone = times.get((title, "with"), plain)
        allowed = [(LIMIT - 1) * p + w for p, w in zip(plain, with_alone, strict=True)]
        over = ratio(ours, allowed).median > 1
        spreads = {"time": Spread.of(ours), "ratio": ratio(ours, plain), "allowed": ratio(allowed, plain)}
        spreads["torch"] = Spread.of(times[title, "torch"])
        results.append({"situation": title, **{key: asdict(s) for key, s in spreads.items()}, "over": over})
    return results


HEADER = ("situation", "µs", "of the plain step", "allowed", "torch.optim, µs", "result")


def cells(result: Mapping[str, Any]) -> list[str]:
    """The row of a situation."""
    return [
        f"**{result['situation']}**" if result["over"] else result["situation"],
        *(number(result[key]["median"]) for key in ("time", "ratio", "allowed", "torch")),
        "correct" if result["correct"] else "WRONG",
    ]


def lines(record: Mapping[str, Any]) -> Iterator[str]:
    """The table as Markdown."""
    rows = [cells(result) for result in record["situations"]]
    yield from table(HEADER, rows)
    over = sum(r["over"] for r in record["situations"])
    yield f"\n{len(rows) - over} of {len(rows)} take no more than is allowed; the others are **bold**."
    yield f"\n{machine_line(record['machine'])}, {record['machine']['date'][:10]}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, checks, prints and keeps."""
    parser = make_parser(__doc__)
    parser.add_argument("--into", type=Path, help="a page to write to")
    args: argparse.Namespace = parser.parse_args(arguments)
    console, machine = begin(args)
    results = results_of(measure(args.rounds or (5 if args.quick else 40)))
    for result in results:
        result["correct"] = is_correct(SITUATIONS[result["situation"]])
    record = {"machine": machine, "situations": results}
    save_json(args.output / "cliffs.json", record)
    console.print(make_table("Adam, 400 tensors of 64 elements", HEADER, map(cells, results)))
    console.print("over what is allowed:", "; ".join(r["situation"] for r in results if r["over"]) or "none")
    if args.into:
        write_into(args.into, list(lines(record)), SECTION)
    if not all(r["correct"] for r in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
