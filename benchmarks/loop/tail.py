"""What does the tail of a training loop take: clipping by the global norm, AdamW's step, averages?

torch's fastest way stands beside ours: `clip_grad_norm_` (foreach), AdamW with `fused=True`, `AveragedModel` with
`get_ema_multi_avg_fn`; for scaled gradients also `GradScaler`. Ours does it all in a step, with `max_grad_norm` and
`ema_decay`, and its own scaler (`shared/tails.py`). Gradients are clipped in every step. Correct: parameters and
averages are no farther from float64 than torch's by more than rounding explains.

Where tensors come from memory, the limit stands beside: the gradients read, and then all that a step reads and writes,
with almost no arithmetic (`shared/probe.cpp`): 40 bytes an element, 32 without averages.

Output: a table, `tail.json`; exit status 1 if a result was wrong.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import fusedoptim
from benchmarks.shared.correctness import as_near
from benchmarks.shared.files import Record
from benchmarks.shared.measure import Call, in_turn, ratio, spread, time_rounds
from benchmarks.shared.options import question
from benchmarks.shared.probe import Probe
from benchmarks.shared.report import Column, Table, number, result_text, unfinished
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.tails import MAX_NORM, Tail
from benchmarks.shared.variants import OURS, REFERENCE, VARIANTS, Variant

STEPS = 3
TAILS_OF = {
    "unscale + clip + step + average": "clip+amp+ema",
    "clip + step + average": "clip+ema",
    "clip + step": "clip",
}
CLIPS_AT = {"clip, at once": MAX_NORM, "clip, nothing to clip": 1e30}
WORKS = (*TAILS_OF, *CLIPS_AT)
SIDES = {"ours": VARIANTS[OURS], "torch": VARIANTS["torch-fused"]}
TARGETS = {  # times torch's pace at least
    "unscale + clip + step + average": {"gpt2": 2.3, "resnet50": 2.3, "tutorial-mlp": 3.5, "400x64": 15.0},
    "clip + step + average": {"gpt2": 2.0, "resnet50": 2.0, "tutorial-mlp": 3.5, "400x64": 15.0},
    "clip + step": {"gpt2": 1.9},
    "clip, nothing to clip": {"gpt2": 5.0},
    "clip, at once": {"gpt2": 2.5},
}
LIMITED = tuple(product(("clip + step + average", "clip + step"), ("resnet50", "gpt2")))
SHARE = 0.95  # of the limit, at least
FINALISTS = 2  # ways of each pass of the limit that are timed in the rounds
SECONDS = 20.0  # of one side's rounds


def make_params(model: str, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    torch.manual_seed(0)
    params = []
    for shape in MODELS[model].shapes:
        p = nn.Parameter(torch.randn(shape).mul_(0.02).to(dtype))
        p.grad = torch.randn(shape).to(dtype)
        params.append(p)
    return params


def make(work: str, variant: Variant, params: list[nn.Parameter]) -> tuple[Call, Tail | None]:
    """What takes the tail of a step, and the tail if it is more than clipping."""
    if work in CLIPS_AT:
        clip: Any = fusedoptim.clip_grad_norm_ if variant.is_ours else nn.utils.clip_grad_norm_
        return partial(clip, params, CLIPS_AT[work]), None
    tail = Tail(TAILS_OF[work], variant, "adamw", nn.ParameterList(params), 1e-3)
    return tail.run, tail


def is_correct(work: str, model: str) -> bool:
    """Whether ours is as near to float64 as torch's; its gradients, or parameters and averages."""

    def results(variant: Variant, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        params = make_params(model, dtype)
        run, tail = make(work, variant, params)
        for step in range(STEPS):
            for p in params:
                if step and tail:  # torch has clipped them; the last are not clipped, and a wrong scale is seen
                    p.grad = p.detach().sign() * 0.01 ** (2 * step - 1)
                if tail and p.grad is not None:
                    p.grad *= tail.scale
            run()
        return tail.results() if tail else [p.grad for p in params if p.grad is not None]

    return as_near(results(SIDES["ours"]), results(SIDES["torch"]), results(REFERENCE, torch.float64))


def limits(optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter]) -> Iterator[Call]:
    """The traffic of clipping and stepping these tensors, which keep their values, in the fastest ways."""
    grads = [p.grad for p in params if p.grad is not None]
    states = [
        [optimizer.state[p][name] for p in params]
        for name in ("exp_avg", "exp_avg_sq", "ema")
        if name in optimizer.state[params[0]]
    ]
    scan, step = Probe("scan", [grads]), Probe("step", [[p.detach() for p in params], *states, grads])
    for i, opposite in product(range(FINALISTS), (False, True)):
        passes = scan.call(scan.ranking[i]), step.call(step.ranking[i])
        if opposite:  # then one runs backwards where the other does not, and begins with what the caches hold
            passes[0]()
        yield partial(in_turn, *passes)


def measure(work: str, model: str, rounds: int) -> dict[str, Any]:
    """Microseconds of both and of the limit, ratios within rounds. Gradients are scaled up again, untimed."""
    params = {name: make_params(model) for name in SIDES}
    made = {name: make(work, variant, params[name]) for name, variant in SIDES.items()}
    calls = {name: run for name, (run, _) in made.items()}
    tail = made["ours"][1]
    kept = [p.grad * (tail.scale if tail else 1.0) for p in params["ours"] if p.grad is not None]

    def write_grads(name: str) -> None:
        for p, grad in zip(params[name if name in SIDES else "ours"], kept, strict=True):
            assert p.grad is not None
            p.grad.copy_(grad)

    for name in SIDES:
        write_grads(name)
        calls[name]()
    if tail and (work, model) in LIMITED:
        calls |= {f"limit {i}": call for i, call in enumerate(limits(tail.optimizer, params["ours"]))}
    times = time_rounds(calls, rounds, before=write_grads, seconds=SECONDS)
    result = {
        "work": work,
        "model": model,
        **{name: spread(times[name]) for name in SIDES},
        "ratio": ratio(times["torch"], times["ours"]),
        "target": TARGETS[work].get(model),
        **unfinished(min(map(len, times.values())), rounds),
    }
    if len(times) > len(SIDES):
        limit = min((times[name] for name in times if name not in SIDES), key=lambda values: spread(values)["median"])
        result |= {"limit": spread(limit), "share": ratio(limit, times["ours"])}
    return result


COLUMNS: dict[str, Column] = {
    "parameters of": "model",
    "ours, µs": "ours.median",
    "torch, µs": "torch.median",
    "torch / ours": lambda r: "{} ({} to {})".format(*(number(r["ratio"][key]) for key in ("median", "low", "high"))),
    "at least": lambda r: "" if r["target"] is None else number(r["target"]),
    f"limit / ours ({SHARE})": lambda r: number(r["share"]["median"]) if "share" in r else "",
    "result": result_text,
}


def tables(record: Record) -> Iterator[Table]:
    yield Table.of(COLUMNS, ((r["work"], r) for r in record["results"]), "The tail")


def run(args: argparse.Namespace) -> Record:
    results = []
    for model, work in product(args.models or MODELS, WORKS):
        rounds = args.rounds or min(MODELS[model].rounds, 40)
        results.append({**measure(work, model, rounds), "correct": is_correct(work, model)})
    return {"results": results}


main = question(__doc__, "tail", run, tables, {"--models": MODELS}, rounds=(None, 5))
