"""What does a small oddity cost a step: Adam on 400 tensors of 64 elements, with one thing changed?

A situation (`cliff_cases.py`) may take 1.5 times the plain step, and where one parameter is left to torch's own
implementation, besides that what it takes there alone: what a torch optimizer for it adds to a plain step that it
follows, as in a loop with two optimizers. All are timed once per round, in changing order. Correct: parameters are no
farther from float64 than torch's by more than rounding explains.

Output: a table in which what is above is bold, `cliffs.json`; exit status 1 if a step was wrong.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fusedoptim
from benchmarks.shared.correctness import as_near
from benchmarks.shared.files import Record
from benchmarks.shared.measure import Call, in_turn, ratio, spread, time_rounds
from benchmarks.shared.options import question
from benchmarks.shared.report import Table, bold, result_text
from benchmarks.step.cliff_cases import PLAIN, SITUATIONS, Situation

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
    ours, theirs = (stepped(situation, module) for module in (fusedoptim, torch.optim))
    return as_near(ours, theirs, stepped(situation, torch.optim, wide=True))


def measure(rounds: int) -> Times:
    """Microseconds of a step, ours and torch's, and where one parameter is left to torch, a plain step with its own."""
    # Fills the gaps that imports have left in memory, in which the first objects made lie scattered and are slower.
    kept = [SITUATIONS[PLAIN].optimizer(fusedoptim) for _ in range(3)]

    def step_of(situation: Situation, module: Any, alone: bool = False) -> Call:
        kept.append(situation.optimizer(module, alone=alone))  # a step under a scheduler does not hold its optimizer
        return partial(kept[-1].step, *situation.arguments)

    calls: dict[tuple[str, str], Call] = {}
    for title, situation in SITUATIONS.items():
        calls[title, "ours"], calls[title, "torch"] = step_of(situation, fusedoptim), step_of(situation, torch.optim)
        if situation.by_torch:
            both = step_of(SITUATIONS[PLAIN], fusedoptim), step_of(situation, torch.optim, alone=True)
            calls[title, "with"] = partial(in_turn, *both)
    return time_rounds(calls, rounds, {key: REPEATS[key[1]] for key in calls})


def results_of(times: Times) -> list[dict[str, Any]]:
    """Each situation beside the plain step of the same round, and whether it takes more than it may."""
    plain = times[PLAIN, "ours"]
    results = []
    for title in SITUATIONS:
        ours = times[title, "ours"]
        with_alone = times.get((title, "with"), plain)
        allowed = [(LIMIT - 1) * p + w for p, w in zip(plain, with_alone, strict=True)]
        over = ratio(ours, allowed)["median"] > 1
        spreads = {"time": spread(ours), "ratio": ratio(ours, plain), "allowed": ratio(allowed, plain)}
        results.append({"situation": title, **spreads, "torch": spread(times[title, "torch"]), "over": over})
    return results


def run(args: argparse.Namespace) -> Record:
    results = results_of(measure(args.rounds))
    return {"situations": [{**r, "correct": is_correct(SITUATIONS[r["situation"]])} for r in results]}


def tables(record: Record) -> Iterator[Table]:
    medians = {"µs": "time", "of the plain step": "ratio", "allowed": "allowed", "torch.optim, µs": "torch"}
    columns = {header: f"{key}.median" for header, key in medians.items()} | {"result": result_text}
    items = ((bold(r["situation"], r["over"]), r) for r in record["situations"])
    yield Table.of(columns, items, "Adam, 400 tensors of 64 elements", corner="situation")


main = question(__doc__, "cliffs", run, tables, rounds=(40, 5))
