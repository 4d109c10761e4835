"""What do training iterations take with one optimizer for each parameter, stepped in the backward pass?

Beside them stand iterations with one optimizer for all parameters, which steps after the backward pass.
An iteration is forward, backward, step and dropping the gradients, of a network of equal layers. What the steps cost in
it is the difference, within a round, to an iteration whose gradients are dropped by hooks and nothing else. Correct is
what has the parameters, bit for bit, that the same implementation leaves when it steps after the backward pass. Beside
the times stands how many bytes of gradients (`p.grad`) there were at once, at the most. Freed memory is kept for all
alike, so that no time depends on whose blocks happen to lie at the end of the heap and are faulted in anew.

Output: a table for each network, `in_backward.json`; exit status 1 if something was wrong.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.optim import _apply_optimizer_in_backward  # type: ignore[attr-defined]

import fusedoptim
from benchmarks.shared.files import Record
from benchmarks.shared.measure import Call, nothing, ratio, spread, time_rounds
from benchmarks.shared.options import question
from benchmarks.shared.report import Table, number, time_and_ratio, unfinished
from benchmarks.shared.variants import OURS, RULES, VARIANTS, Variant

RULE = "adam"
LR = 1e-4
COMPARED = (OURS, "torch-fused", "torch-default")
AFTER, HOOKS, APPLIED = "after backward", "hooks", "`_apply_optimizer_in_backward`"
WAYS = (AFTER, HOOKS, APPLIED)
DROPPED = "no step"
CHECKED = 3  # iterations
SAMPLES = 16
SECONDS = 15.0  # of one kind of training; on a quiet machine the longest takes 2


class Network(NamedTuple):
    """Layers of equal width, each added to what went in."""

    layers: int  # how many, with two parameters each
    width: int  # of their input and output
    repeats: int  # how many iterations in a row a measurement takes


NETWORKS = {"300 tensors": Network(150, 64, 5), "12 tensors": Network(6, 1024, 3)}


def _drop(p: Any) -> None:
    p.grad = None


def _stepping(optimizers: Mapping[Any, Any], drops: bool) -> Callable[[Any], None]:
    """A hook that takes the step and drops the gradient; `drops`: the step itself can."""

    def step_and_drop(p: Any) -> None:
        optimizers[p].step()
        p.grad = None

    return (lambda p: optimizers[p].step(zero_grad="to_none")) if drops else step_and_drop


class Training:
    """A network, the same each time, and how its parameters are updated: `run` is an iteration.

    Args:
        network: What is trained.
        way: When and by whom the steps are taken.
        variant: The optimizers; None: the gradients are dropped by hooks, and there are none.
        watched: Keep in `held` how many bytes of gradients there were at once, at the most.
    """

    def __init__(self, network: Network, way: str, variant: Variant | None = None, watched: bool = False) -> None:
        torch.manual_seed(0)
        self.layers = [nn.Linear(network.width, network.width) for _ in range(network.layers)]
        self.params = [p for layer in self.layers for p in layer.parameters()]
        self.batch, self.held = torch.randn(SAMPLES, network.width), 0
        self.before: Call = nothing
        self.after: Call = nothing
        hooks: list[Callable[[Any], None]] = [self.watch] if watched else []
        if variant is None:
            hooks.append(_drop)
        elif way == AFTER:
            self.before, self.after = variant.loop_calls(variant.build(RULE, self.params, LR), "to_none")
        elif way == HOOKS:
            hooks.append(_stepping({p: variant.build(RULE, [p], LR) for p in self.params}, variant.is_ours))
        for hook, p in product(hooks, self.params):
            p.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        if variant and way == APPLIED:
            options = {"lr": LR, **RULES[RULE].options, **variant.flags}
            _apply_optimizer_in_backward(variant.cls(RULE), self.params, options)

    def watch(self, _: Tensor) -> None:
        self.held = max(self.held, sum(p.grad.nbytes for p in self.params if p.grad is not None))

    def run(self) -> None:
        self.before()
        x = self.batch
        for layer in self.layers:
            x = x + 0.1 * layer(x)
        x.square().mean().backward()  # type: ignore[no-untyped-call]
        self.after()


def check(network: Network, name: str, way: str) -> dict[str, Any]:
    """Takes a few iterations: whether they leave what steps after the backward pass leave, and the gradients held."""
    training = Training(network, way, VARIANTS[name], watched=True)
    other = Training(network, AFTER, VARIANTS[name])
    for _ in range(CHECKED):
        training.run()
        other.run()
    return {"correct": all(map(torch.equal, training.params, other.params)), "held": training.held}


def measure(network: Network, rounds: int) -> list[dict[str, Any]]:
    """Times, gradients held and correctness of each implementation and way, and of an iteration without steps."""
    trainings = {(name, way): Training(network, way, VARIANTS[name]) for name, way in product(COMPARED, WAYS)}
    trainings[DROPPED, HOOKS] = Training(network, HOOKS)
    calls = {key: training.run for key, training in trainings.items()}
    for call in calls.values():
        call()
    times = time_rounds(calls, rounds, network.repeats, seconds=SECONDS)
    none = times[DROPPED, HOOKS]
    return [
        {
            "variant": name,
            "way": way,
            "time": spread(values),
            "ratio": ratio(values, times[OURS, way]),
            "steps": spread([a - b for a, b in zip(values, none, strict=False)]),
            **unfinished(len(values), rounds),
            **(check(network, name, way) if name != DROPPED else {"correct": True, "held": 0}),
        }
        for (name, way), values in times.items()
    ]


def tables(record: Record) -> Iterator[Table]:
    for name, results in record["results"].items():
        found = {(r["variant"], r["way"]): r for r in results}
        rows = [[variant, *(time_and_ratio(found[variant, way]) for way in WAYS)] for variant in COMPARED]
        rows.append([DROPPED, "", number(found[DROPPED, HOOKS]["time"]["median"]), ""])
        for variant in COMPARED:
            steps = (number(found[variant, way]["steps"]["median"]) for way in WAYS)
            rows.append([f"{variant}, time beyond {DROPPED}", *steps])
        rows.append(["most gradients in memory", *(f"{found[OURS, way]['held'] / 1e6:,.2f} MB" for way in WAYS)])
        yield Table([f"{name}, µs per iteration (times ours)", *WAYS], rows)


def run(args: argparse.Namespace) -> Record:
    fusedoptim.keep_freed_memory()
    return {"results": {name: measure(network, args.rounds) for name, network in NETWORKS.items()}}


main = question(__doc__, "in_backward", run, tables, rounds=(40, 3))
