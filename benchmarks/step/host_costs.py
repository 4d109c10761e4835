"""Where does the time of a small step go: nanoseconds for each tensor, and for the call, part by part?

A part is the difference between two optimizers that differ in it alone, such as those with and without momentum. What
a tensor costs is the slope between 100 and 400 of them, what the call costs is what remains; both are taken within a
round, and the figures are medians over rounds. One thread; the tensors stay in the caches.

Output: tables of parts and of calls, `host_costs.json`.
"""

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fusedoptim
from benchmarks.shared.files import Record
from benchmarks.shared.measure import Call, in_rounds, spread, time_call
from benchmarks.shared.options import question
from benchmarks.shared.report import Table

FEW, MANY = 100, 400
REPEATS = 20


def parameters(count: int, elements: int, grads: bool = True) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.full((elements,), 0.5)) for _ in range(count)]
    for p in params if grads else ():
        p.grad = torch.full((elements,), 0.01)
    return params


def stepping(name: str, elements: int, grads: bool = True, zero_grad: str | None = None, **options: Any) -> Any:
    """Makes, for a number of tensors, the step of an optimizer whose state is there."""

    def make(count: int) -> Call:
        optimizer = getattr(fusedoptim, name)(parameters(count, elements, grads), lr=1e-6, **options)
        optimizer.step()
        return partial(optimizer.step, zero_grad=zero_grad)

    return make


def clearing(kept: bool | None) -> Any:
    """Makes `zero_grad` of gradients that live on elsewhere, or are freed with it; None: there are none."""

    def make(count: int) -> tuple[Call, Call]:
        params = parameters(count, 64)
        grads: list[Tensor | None] = [p.grad for p in params]

        def give() -> None:
            for p, grad in zip(params, grads, strict=True):
                p.grad = None if kept is None else grad if kept else torch.empty(64)

        return fusedoptim.SGD(params).zero_grad, give

    return make


CALLS: Mapping[str, Any] = {
    "nothing has a gradient": stepping("SGD", 1, grads=False),
    "SGD, 1 element": stepping("SGD", 1),
    "SGD with momentum, 1 element": stepping("SGD", 1, momentum=0.9),
    "Adam, 1 element": stepping("Adam", 1),
    "Adam, 64 elements": stepping("Adam", 64),
    "SGD, 64 elements": stepping("SGD", 64),
    "SGD, 64 elements, zeroing": stepping("SGD", 64, zero_grad="to_zero"),  # no state, to decay to denormal numbers
    "zero_grad, nothing there": clearing(None),
    "zero_grad, gradients kept elsewhere": clearing(True),
    "zero_grad, gradients freed": clearing(False),
}
PARTS: Sequence[tuple[str, str, str | None]] = (  # what, with it, without it
    ("skip a parameter without a gradient", "nothing has a gradient", None),
    (
        "check parameter and gradient, prepare the task, bump the version; 1 element",
        "SGD, 1 element",
        "nothing has a gradient",
    ),
    ("look up the state, one tensor; 1 element", "SGD with momentum, 1 element", "SGD, 1 element"),
    ("second state tensor and step count", "Adam, 1 element", "SGD with momentum, 1 element"),
    ("63 more elements", "Adam, 64 elements", "Adam, 1 element"),
    ("zero the gradient within the step", "SGD, 64 elements, zeroing", "SGD, 64 elements"),
    ("zero_grad: skip a parameter without a gradient", "zero_grad, nothing there", None),
    ("zero_grad: set a gradient to None", "zero_grad, gradients kept elsewhere", "zero_grad, nothing there"),
    ("zero_grad: torch frees the gradient", "zero_grad, gradients freed", "zero_grad, gradients kept elsewhere"),
)


def time_one(made: Any) -> float:
    """Microseconds of a call; one that has something to do before each is timed alone each time."""
    if not isinstance(made, tuple):
        return time_call(made, REPEATS)
    call, before = made
    times = []
    for _ in range(REPEATS):
        before()
        times.append(time_call(call))
    return statistics.median(times)


def measure(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Nanoseconds for each tensor and for the call, one figure per round, of each entry of CALLS."""
    made = {(name, count): make(count) for name, make in CALLS.items() for count in (FEW, MANY)}
    times = in_rounds(made, rounds, lambda key: 1e3 * time_one(made[key]))
    result: dict[str, dict[str, list[float]]] = {}
    for name in CALLS:
        few, many = (torch.tensor(times[name, count], dtype=torch.float64) for count in (FEW, MANY))
        slopes = (many - few) / (MANY - FEW)
        figures = {"tensor": slopes, "call": few - FEW * slopes, "all": many / MANY}
        result[name] = {key: values.tolist() for key, values in figures.items()}
    return result


def parts_of(measured: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """Each of PARTS with its nanoseconds a tensor."""
    parts = []
    for what, more, less in PARTS:
        without = measured[less]["tensor"] if less else [0.0] * len(measured[more]["tensor"])
        differences = [a - b for a, b in zip(measured[more]["tensor"], without, strict=True)]
        parts.append({"part": what, "ns": spread(differences)})
    return parts


def run(args: argparse.Namespace) -> Record:
    measured = measure(args.rounds)
    calls = {name: {key: spread(values) for key, values in figures.items()} for name, figures in measured.items()}
    return {"calls": calls, "parts": parts_of(measured)}


def tables(record: Record) -> Iterator[Table]:
    rows = ((part["part"], f"{part['ns']['median']:.0f}") for part in record["parts"])
    yield Table(("part", "ns a tensor"), rows, "parts")
    columns = {"ns a tensor": "tensor", "ns a call": "call", "ns / tensor": "all"}
    yield Table.of(columns, record["calls"], f"calls; the last column with {MANY} tensors")


main = question(__doc__, "host_costs", run, tables, rounds=(60, 5), threads=1)
