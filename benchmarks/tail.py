"""The tail of a training loop: clipping by the global norm, AdamW's step, averages. Ours beside torch's fastest way.

torch's: `clip_grad_norm_` (foreach), AdamW with `fused=True`, `AveragedModel` with `get_ema_multi_avg_fn`. Ours does it
all in a step, with `max_grad_norm` and `ema_decay`. Gradients are clipped in every step. Correct: parameters and
averages are no farther from float64 than torch's by more than rounding explains. Exit status 1 if not.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fusedoptim
from correctness import Error, within
from measure import CpuClock, Spread, interleaved, ratio, time_call
from options import add_names, begin, make_parser
from readme_tables import table, write_into
from report import correct_text, machine_line, make_table, number, save_json, spread_text
from shapes import MODELS

SECTION = "tail"
MAX_NORM, DECAY, STEPS = 1.0, 0.999, 3
WORKS = ("clip + step + average", "clip + step", "clip, at once", "clip, nothing to clip")
# At least so many times torch's pace.
TARGETS = {
    ("clip + step + average", "gpt2"): 2.0,
    ("clip + step + average", "resnet50"): 2.0,
    ("clip + step + average", "tutorial-mlp"): 3.5,
    ("clip + step + average", "400x64"): 15.0,
    ("clip + step", "gpt2"): 1.9,
    ("clip, nothing to clip", "gpt2"): 5.0,
    ("clip, at once", "gpt2"): 2.5,
}


def make_params(model: str, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """Parameters with gradients, of which no two are equal."""
    torch.manual_seed(0)
    params = []
    for shape in MODELS[model].shapes:
        p = nn.Parameter(torch.randn(shape).mul_(0.02).to(dtype))
        p.grad = torch.randn(shape).to(dtype)
        params.append(p)
    return params


def torchs(work: str, params: list[nn.Parameter]) -> tuple[Callable[[], Any], Callable[[], list[Tensor]]]:
    """What takes the tail of a step, and what returns the averages."""
    if work.startswith("clip,"):
        limit = MAX_NORM if work == "clip, at once" else 1e30
        return lambda: clip_grad_norm_(params, limit), list
    fused = None if params[0].dtype == torch.float64 else True
    optimizer = torch.optim.AdamW(params, lr=1e-3, fused=fused)
    if "average" not in work:
        return lambda: (clip_grad_norm_(params, MAX_NORM), optimizer.step()), list
    model = nn.ParameterList(params)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))  # type: ignore[no-untyped-call]

    def tail() -> None:
        clip_grad_norm_(params, MAX_NORM)
        optimizer.step()
        average.update_parameters(model)

    return tail, lambda: [p.detach() for p in average.parameters()]


def ours(work: str, params: list[nn.Parameter]) -> tuple[Callable[[], Any], Callable[[], list[Tensor]]]:
    """The same."""
    if work.startswith("clip,"):
        limit = MAX_NORM if work == "clip, at once" else 1e30
        return lambda: fusedoptim.clip_grad_norm_(params, limit), list
    decay = DECAY if "average" in work else None
    adamw: Any = fusedoptim.AdamW
    optimizer = adamw(params, lr=1e-3, max_grad_norm=MAX_NORM, ema_decay=decay)
    return optimizer.step, lambda: [] if decay is None else [optimizer.state[p]["ema"] for p in params]


def is_correct(work: str, model: str) -> bool:
    """Whether ours is as near to float64 as torch's; its gradients, parameters and averages."""

    def results(make: Any, dtype: torch.dtype) -> list[Tensor]:
        params = make_params(model, dtype)
        tail, averages = make(work, params)
        for _ in range(STEPS):
            tail()
            for p in params if "step" in work else ():  # which torch has clipped
                p.grad = p.detach().sign() * 0.01
        own = [p.grad if "step" not in work else p.detach() for p in params]
        return [x for x in (*own, *averages()) if x is not None]

    exact = results(torchs, torch.float64)
    start = [torch.zeros_like(x) for x in exact]
    mine, theirs = (Error.of(results(make, torch.float32), exact, start) for make in (ours, torchs))
    return within(mine.overall, [theirs.overall]) and within(mine.worst, [theirs.worst])


def measure(work: str, model: str, rounds: int) -> dict[str, Any]:
    """Microseconds of both, and torch's time by ours within rounds. Gradients are scaled up again, untimed."""
    times: dict[str, list[float]] = {"ours": [], "torch": []}
    params = {name: make_params(model) for name in times}
    tails = {name: make(work, params[name])[0] for name, make in (("ours", ours), ("torch", torchs))}
    kept = {name: [p.grad.clone() for p in params[name] if p.grad is not None] for name in times}
    for tail in tails.values():
        tail()
    for name in interleaved(list(times), rounds):
        for p, grad in zip(params[name], kept[name], strict=True):
            assert p.grad is not None
            p.grad.copy_(grad)
        times[name].append(time_call(tails[name], CpuClock()))
    return {
        "work": work,
        "model": model,
        **{name: asdict(Spread.of(values)) for name, values in times.items()},
        "ratio": asdict(ratio(times["torch"], times["ours"])),
        "target": TARGETS.get((work, model)),
    }


def lines(record: Mapping[str, Any]) -> list[str]:
    """The table as Markdown."""
    rows = [
        [
            r["work"],
            r["model"],
            *(number(r[key]["median"]) for key in ("ours", "torch")),
            f"{number(r['ratio']['median'])} ({number(r['ratio']['low'])} to {number(r['ratio']['high'])})",
            "" if r["target"] is None else number(r["target"]),
            correct_text(r["correct"]).replace("[bold red]", "").replace("[/]", ""),
        ]
        for r in record["results"]
    ]
    header = ["", "parameters of", "ours, µs", "torch, µs", "torch / ours", "at least", "result"]
    return [*table(header, rows), f"\n{machine_line(record['machine'])}, {record['machine']['date'][:10]}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, checks, prints and keeps."""
    parser = make_parser(__doc__)
    parser.add_argument("--into", type=Path, help="a page to write to")
    add_names(parser, "--models", list(MODELS), "parameters of which models")
    args = parser.parse_args(arguments)
    console, machine = begin(args)
    results = []
    for model in args.models or MODELS:
        for work in WORKS:
            rounds = args.rounds or (5 if args.quick else min(MODELS[model].rounds, 40))
            result = measure(work, model, rounds)
            result["correct"] = is_correct(work, model)
            results.append(result)
    record = {"machine": machine, "results": results}
    save_json(args.output / "tail.json", record)
    rows = [
        (
            r["work"],
            r["model"],
            *(spread_text(Spread(**r[key])) for key in ("ours", "torch", "ratio")),
            "" if r["target"] is None else number(r["target"]),
            correct_text(r["correct"]),
        )
        for r in results
    ]
    console.print(make_table("The tail", ("", "model", "ours, µs", "torch, µs", "torch / ours", "at least", ""), rows))
    if args.into:
        write_into(args.into, lines(record), SECTION)
    return 0 if all(r["correct"] for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
