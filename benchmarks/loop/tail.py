"""The tail of a training loop: clipping by the global norm, AdamW's step, averages. Ours beside torch's fastest way.

torch's: `clip_grad_norm_` (foreach), AdamW with `fused=True`, `AveragedModel` with `get_ema_multi_avg_fn`; for scaled
gradients also `GradScaler`. Ours does it all in a step, with `max_grad_norm` and `ema_decay`, and its own scaler
(`tails.py`). Gradients are clipped in every step. Correct: parameters and averages are no farther from float64 than
torch's by more than rounding explains. Exit status 1 if not.

Where tensors come from memory, the limit stands beside: the gradients read, and then all that a step reads and writes,
with almost no arithmetic (`probe.cpp`): 40 bytes an element, 32 without averages.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fusedoptim
from benchmarks.publish.markdown import table, write_into
from benchmarks.shared.correctness import REFERENCE, Error, within
from benchmarks.shared.measure import CpuClock, Spread, interleaved, ratio, time_call
from benchmarks.shared.options import add_names, begin, make_parser
from benchmarks.shared.probe import Probe
from benchmarks.shared.report import machine_line, make_table, number, save_json
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.tails import MAX_NORM, Tail
from benchmarks.shared.variants import OURS, VARIANTS, Variant

SECTION = "tail"
STEPS = 3
TAILS_OF = {
    "unscale + clip + step + average": "clip+amp+ema",
    "clip + step + average": "clip+ema",
    "clip + step": "clip",
}
CLIPS_AT = {"clip, at once": MAX_NORM, "clip, nothing to clip": 1e30}
WORKS = (*TAILS_OF, *CLIPS_AT)
SIDES = {"ours": VARIANTS[OURS], "torch": VARIANTS["torch-fused"]}
# At least so many times torch's pace.
TARGETS = {
    ("unscale + clip + step + average", "gpt2"): 2.3,
    ("unscale + clip + step + average", "resnet50"): 2.3,
    ("unscale + clip + step + average", "tutorial-mlp"): 3.5,
    ("unscale + clip + step + average", "400x64"): 15.0,
    ("clip + step + average", "gpt2"): 2.0,
    ("clip + step + average", "resnet50"): 2.0,
    ("clip + step + average", "tutorial-mlp"): 3.5,
    ("clip + step + average", "400x64"): 15.0,
    ("clip + step", "gpt2"): 1.9,
    ("clip, nothing to clip", "gpt2"): 5.0,
    ("clip, at once", "gpt2"): 2.5,
}
LIMITED = tuple(product(("clip + step + average", "clip + step"), ("resnet50", "gpt2")))
SHARE = 0.95  # of the limit, at least
FINALISTS = 2  # ways of each pass of the limit that are timed in the rounds


def make_params(model: str, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """Parameters with gradients, of which no two are equal."""
    torch.manual_seed(0)
    params = []
    for shape in MODELS[model].shapes:
        p = nn.Parameter(torch.randn(shape).mul_(0.02).to(dtype))
        p.grad = torch.randn(shape).to(dtype)
        params.append(p)
    return params


def make(work: str, variant: Variant, params: list[nn.Parameter]) -> tuple[Callable[[], object], Tail | None]:
    """What takes the tail of a step, and the tail if it is more than clipping."""
    if work in CLIPS_AT:
        clip: Any = fusedoptim.clip_grad_norm_ if variant.is_ours else nn.utils.clip_grad_norm_
        return partial(clip, params, CLIPS_AT[work]), None
    tail = Tail(TAILS_OF[work], variant, "adamw", nn.ParameterList(params), 1e-3)
    return tail.run, tail


def is_correct(work: str, model: str) -> bool:
    """Whether ours is as near to float64 as torch's; its gradients, or parameters and averages."""

    def results(variant: Variant, dtype: torch.dtype) -> list[Tensor]:
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

    exact = results(REFERENCE, torch.float64)
    start = [torch.zeros_like(x) for x in exact]
    mine, theirs = (Error.of(results(variant, torch.float32), exact, start) for variant in SIDES.values())
    return within(mine.overall, [theirs.overall]) and within(mine.worst, [theirs.worst])


def run_both(first: Callable[[], object], second: Callable[[], object]) -> None:
    """One after the other."""
    first()
    second()


def limits(optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter]) -> Iterator[Callable[[], object]]:
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
        yield partial(run_both, *passes)


def measure(work: str, model: str, rounds: int) -> dict[str, Any]:
    """Microseconds of both and of the limit, ratios within rounds. Gradients are scaled up again, untimed."""
    params = {name: make_params(model) for name in SIDES}
    made = {name: make(work, variant, params[name]) for name, variant in SIDES.items()}
    calls = {name: run for name, (run, _) in made.items()}
    tail = made["ours"][1]
    kept = [p.grad * (tail.scale if tail else 1.0) for p in params["ours"] if p.grad is not None]

    def write_grads(name: str) -> None:
        for p, grad in zip(params[name], kept, strict=True):
            assert p.grad is not None
            p.grad.copy_(grad)

    for name in SIDES:
        write_grads(name)
        calls[name]()
    if tail and (work, model) in LIMITED:
        calls |= {f"limit {i}": call for i, call in enumerate(limits(tail.optimizer, params["ours"]))}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name in interleaved(list(calls), rounds):
        write_grads(name if name in SIDES else "ours")
        times[name].append(time_call(calls[name], CpuClock()))
    result = {
        "work": work,
        "model": model,
        **{name: asdict(Spread.of(times[name])) for name in SIDES},
        "ratio": asdict(ratio(times["torch"], times["ours"])),
        "target": TARGETS.get((work, model)),
    }
    if len(times) > len(SIDES):
        limit = min((times[name] for name in times if name not in SIDES), key=lambda values: Spread.of(values).median)
        result |= {"limit": asdict(Spread.of(limit)), "share": asdict(ratio(limit, times["ours"]))}
    return result


def cells(r: Mapping[str, Any]) -> list[str]:
    """The row of a result."""
    return [
        r["work"],
        r["model"],
        *(number(r[key]["median"]) for key in ("ours", "torch")),
        f"{number(r['ratio']['median'])} ({number(r['ratio']['low'])} to {number(r['ratio']['high'])})",
        "" if r["target"] is None else number(r["target"]),
        number(r["share"]["median"]) if "share" in r else "",
        "correct" if r["correct"] else "WRONG",
    ]


HEADER = ("", "parameters of", "ours, µs", "torch, µs", "torch / ours", "at least", f"limit / ours ({SHARE})", "result")


def lines(record: Mapping[str, Any]) -> list[str]:
    """The table as Markdown."""
    rows = map(cells, record["results"])
    return [*table(HEADER, rows), f"\n{machine_line(record['machine'])}, {record['machine']['date'][:10]}"]


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
    console.print(make_table("The tail", HEADER, map(cells, results)))
    if args.into:
        write_into(args.into, lines(record), SECTION)
    return 0 if all(r["correct"] for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
