"""Training iterations with one optimizer for each parameter, stepped in the backward pass, beside one for all after it.

`--into docs/in_backward.md` writes the tables into that page, between the marks of the section "in backward".

An iteration is forward, backward, step and dropping the gradients, of a network of equal layers. What the steps cost in
it is the difference, within a round, to an iteration whose gradients are dropped by hooks and nothing else. Correct is
what has the parameters, bit for bit, that the same implementation leaves when it steps after the backward pass. Beside
the times stands how many bytes of gradients (`p.grad`) there were at once, at the most. Freed memory is kept for all
alike, so that no time depends on whose blocks happen to lie at the end of the heap and are faulted in anew.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.optim import _apply_optimizer_in_backward  # type: ignore[attr-defined]

import fusedoptim
from benchmarks.publish.markdown import cell, table, write_into
from benchmarks.shared.measure import CpuClock, Spread, interleaved, ratio, time_call
from benchmarks.shared.options import begin, make_parser
from benchmarks.shared.report import (
    correct_text,
    machine_line,
    make_progress,
    make_table,
    number,
    save_json,
    spread_text,
)
from benchmarks.shared.variants import OURS, RULES, VARIANTS, Variant, nothing

SECTION = "in backward"
RULE = "adam"
LR = 1e-4
COMPARED = (OURS, "torch-fused", "torch-default")
AFTER, HOOKS, APPLIED = "after backward", "hooks", "`_apply_optimizer_in_backward`"
WAYS = (AFTER, HOOKS, APPLIED)
DROPPED = "no step"
CHECKED = 3  # iterations
SAMPLES = 16


@dataclass(frozen=True)
class Network:
    """Layers of equal width, each added to what went in.

    Attributes:
        layers: How many, with two parameters each.
        width: Of their input and output.
        repeats: How many iterations in a row a measurement takes.
    """

    layers: int
    width: int
    repeats: int

    def build(self) -> tuple[list[nn.Parameter], Callable[[], Tensor]]:
        """The parameters, the same ones each time, and the forward pass with the loss."""
        torch.manual_seed(0)
        layers = [nn.Linear(self.width, self.width) for _ in range(self.layers)]
        batch = torch.randn(SAMPLES, self.width)

        def loss() -> Tensor:
            x = batch
            for layer in layers:
                x = x + 0.1 * layer(x)
            return x.square().mean()

        return [p for layer in layers for p in layer.parameters()], loss


NETWORKS = {"300 tensors": Network(150, 64, 5), "12 tensors": Network(6, 1024, 3)}


class Training:
    """A network and how its parameters are updated: `run` is an iteration.

    Args:
        network: What is trained.
        way: When and by whom the steps are taken.
        variant: The optimizers; None: the gradients are dropped by hooks, and there are none.
        watched: Keep in `held` how many bytes of gradients there were at once, at the most.
    """

    def __init__(self, network: Network, way: str, variant: Variant | None = None, watched: bool = False) -> None:
        self.params, self.loss = network.build()
        self.held = 0
        self.before: Callable[[], object] = nothing
        self.after: Callable[[], object] = nothing
        if watched:
            self._hook(self._watch)
        if variant is None:
            self._hook(_drop)
        elif way == AFTER:
            self.before, self.after = variant.loop_calls(variant.build(RULE, self.params, LR), "to_none")
        elif way == HOOKS:
            self._hook(_stepping({p: variant.build(RULE, [p], LR) for p in self.params}, variant.is_ours))
        else:
            options = {"lr": LR, **RULES[RULE].options, **variant.flags}
            _apply_optimizer_in_backward(getattr(variant.module, RULES[RULE].class_name), self.params, options)

    def _hook(self, hook: Callable[[Any], None]) -> None:
        for p in self.params:
            p.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def _watch(self, _: Tensor) -> None:
        self.held = max(self.held, sum(p.grad.nbytes for p in self.params if p.grad is not None))

    def run(self) -> None:
        """Forward, backward, step."""
        self.before()
        self.loss().backward()  # type: ignore[no-untyped-call]
        self.after()


def _drop(p: Any) -> None:
    p.grad = None


def _stepping(optimizers: Mapping[Any, Any], drops: bool) -> Callable[[Any], None]:
    """A hook that takes the step and drops the gradient; `drops`: the step itself can."""

    def step_that_drops(p: Any) -> None:
        optimizers[p].step(zero_grad="to_none")

    def step_and_drop(p: Any) -> None:
        optimizers[p].step()
        p.grad = None

    return step_that_drops if drops else step_and_drop


def check(network: Network, name: str, way: str) -> dict[str, Any]:
    """Takes a few iterations: whether they leave what steps after the backward pass leave, and the gradients held."""
    training = Training(network, way, VARIANTS[name], watched=True)
    other = Training(network, AFTER, VARIANTS[name])
    for _ in range(CHECKED):
        training.run()
        other.run()
    return {"correct": all(map(torch.equal, training.params, other.params)), "held": training.held}


def measure(network: Network, rounds: int, advance: Callable[[], None]) -> list[dict[str, Any]]:
    """Times, gradients held and correctness of each implementation and way, and of an iteration without steps."""
    trainings = {(name, way): Training(network, way, VARIANTS[name]) for name, way in product(COMPARED, WAYS)}
    trainings[DROPPED, HOOKS] = Training(network, HOOKS)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in trainings}
    for training in trainings.values():
        training.run()
    clock = CpuClock()
    for key in interleaved(list(trainings), rounds):
        times[key].append(time_call(trainings[key].run, clock, network.repeats))
        advance()
    none = times[DROPPED, HOOKS]
    return [
        {
            "variant": name,
            "way": way,
            "time": asdict(Spread.of(times[name, way])),
            "ratio": asdict(ratio(times[name, way], times[OURS, way])),
            "steps": asdict(Spread.of([a - b for a, b in zip(times[name, way], none, strict=True)])),
            **(check(network, name, way) if name != DROPPED else {"correct": True, "held": 0}),
        }
        for name, way in trainings
    ]


def megabytes(result: Mapping[str, Any]) -> str:
    """The gradients that there were at once."""
    return f"{result['held'] / 1e6:,.2f} MB"


def lines(record: Mapping[str, Any]) -> Iterator[str]:
    """A Markdown table for each network."""
    for name, results in record["results"].items():
        found = {(r["variant"], r["way"]): r for r in results}
        rows = [[variant, *(cell(found[variant, way], "time", "ratio") for way in WAYS)] for variant in COMPARED]
        rows.append([DROPPED, "", number(found[DROPPED, HOOKS]["time"]["median"]), ""])
        for variant in COMPARED:
            steps = (number(found[variant, way]["steps"]["median"]) for way in WAYS)
            rows.append([f"beyond {DROPPED}: {variant}", *steps])
        rows.append(["gradients at once", *(megabytes(found[OURS, way]) for way in WAYS)])
        yield from table([f"{name}, µs per iteration (times ours)", *WAYS], rows)
        yield ""
    yield f"{machine_line(record['machine'])}, {record['machine']['date'][:10]}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and keeps; exit status 1 if something was wrong."""
    parser = make_parser(__doc__)
    parser.add_argument("--into", type=Path, help="a page to write to")
    args: argparse.Namespace = parser.parse_args(arguments)
    console, machine = begin(args)
    fusedoptim.keep_freed_memory()
    rounds = args.rounds or (3 if args.quick else 40)
    results = {}
    with make_progress(console) as progress:
        for name, network in NETWORKS.items():
            task = progress.add_task(name, total=rounds * (len(COMPARED) * len(WAYS) + 1))
            results[name] = measure(network, rounds, lambda task=task: progress.advance(task))  # type: ignore[misc]
    record = {"machine": machine, "results": results}
    save_json(args.output / "in_backward.json", record)
    for name, found in results.items():
        rows = [
            (r["variant"], r["way"], spread_text(Spread(**r["time"])), spread_text(Spread(**r["ratio"])),
             number(r["steps"]["median"]), megabytes(r), correct_text(r["correct"])) for r in found
        ]  # fmt: skip
        console.print(make_table(name, ("", "", "µs", "times ours", "beyond no step", "gradients at once", ""), rows))
    if args.into:
        write_into(args.into, list(lines(record)), SECTION)
    if not all(r["correct"] for found in results.values() for r in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
