"""`load_state_dict` of Adam's own state dict, ours beside torch's: correct if the state is what was saved.

Ours checks all that it loads, torch next to nothing. Exit status 1 if a state was loaded wrong.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import nn

import fusedoptim
from benchmarks.shared.measure import CpuClock, Spread, interleaved, ratio, time_call
from benchmarks.shared.options import begin, make_parser
from benchmarks.shared.report import correct_text, make_table, save_json, spread_text

OURS, TORCHS = "fusedoptim", "torch"
MODULES: Mapping[str, ModuleType] = {OURS: fusedoptim, TORCHS: torch.optim}
SIZES = [(30, 64), (300, 64), (300, 4096)]  # tensors, elements of each
TARGET = 1.3  # with 300 tensors


def make(module: ModuleType, tensors: int, elements: int) -> tuple[Any, dict[str, Any]]:
    """An optimizer that has taken a step, and its state dict."""
    params = [nn.Parameter(torch.full((elements,), 0.5)) for _ in range(tensors)]
    optimizer = module.Adam(params, lr=1e-3)
    for i, p in enumerate(params):
        p.grad = torch.full_like(p, 1.0 + i)
    optimizer.step()
    return optimizer, optimizer.state_dict()


def is_loaded(optimizer: Any, saved: Mapping[str, Any]) -> bool:
    """Whether each parameter has the state that was saved for it."""
    entries = [optimizer.state[p] for p in optimizer.param_groups[0]["params"]]
    return all(
        entry.keys() == saved["state"][i].keys() and all(torch.equal(x, saved["state"][i][k]) for k, x in entry.items())
        for i, entry in enumerate(entries)
    )


def measure(tensors: int, elements: int, rounds: int) -> dict[str, Any]:
    """Microseconds of both, their ratio within rounds, and whether both were correct."""
    made = {name: make(module, tensors, elements) for name, module in MODULES.items()}
    times: dict[str, list[float]] = {name: [] for name in made}
    for name in interleaved(list(made), rounds):
        optimizer, saved = made[name]
        optimizer.state.clear()
        times[name].append(time_call(partial(optimizer.load_state_dict, saved), CpuClock()))
    return {
        "tensors": tensors,
        "elements": elements,
        **{name: asdict(Spread.of(values)) for name, values in times.items()},
        "ratio": asdict(ratio(times[OURS], times[TORCHS])),
        "correct": all(is_loaded(*pair) for pair in made.values()),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and keeps."""
    args = make_parser(__doc__).parse_args(arguments)
    args.threads = args.threads or 1
    console, machine = begin(args)
    results = [measure(*size, args.rounds or (5 if args.quick else 200)) for size in SIZES]
    save_json(args.output / "load_time.json", {"machine": machine, "target": TARGET, "results": results})
    rows = [
        (
            f"{result['tensors']} tensors of {result['elements']}",
            *(spread_text(Spread(**result[name])) for name in (OURS, TORCHS, "ratio")),
            correct_text(result["correct"]),
        )
        for result in results
    ]
    console.print(make_table("load_state_dict", ("", "ours, µs", "torch, µs", "ratio", ""), rows))
    console.print(f"target with 300 tensors: a ratio of at most {TARGET}")
    return 0 if all(result["correct"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
