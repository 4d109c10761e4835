"""Times on a device: of the step beside a copy of memory, of its call on the host, of graphs, of whole training loops.

All variants and the copy take turns in changing order within rounds. Before each measurement the gradients are written
anew and the device has nothing to do: what is timed with events is what a loop of such steps takes, with the host's
share where the host is slower. The host's own time is that of calls which nobody waits for, few enough for the queue of
launches; torch's for-loop fills it all the same, and then its time is the device's.
"""

import argparse
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from benchmarks.gpu.arena import APEX, NAMES, Copy, DeviceArena, has_apex, launches
from benchmarks.gpu.device import Device
from benchmarks.loop.run import Case as TrainingCase
from benchmarks.shared.measure import Spread, clock_for, interleaved, ratio, time_call
from benchmarks.shared.shapes import MODELS, Model
from benchmarks.shared.variants import OURS, RULES, VARIANTS

COPY = "copy"
WARM_UP = 3
HOST_CALLS = 5  # in the queue at a time, whose launches it holds easily
GRAPH_VARIANTS = ("torch-foreach", "torch-fused", OURS)
LOOP_VARIANTS = ["torch-default", "torch-foreach", "torch-fused", OURS]
LOOPS = (("tutorial", "adam"), ("bytes-gpt", "adam"), ("tutorial", "sgd"), ("bytes-gpt", "adamw"))
# What the targets rest on comes first: the budget may not last for all.
STEPS = (
    *(("gpt2", rule) for rule in ("adam", "sgd", "adamw")),
    *((model, rule) for rule in ("adam", "sgd", "adamw") for model in ("400x64", "resnet50", "tutorial-mlp")),
)


@dataclass(frozen=True)
class Plan:
    """How much is timed.

    Attributes:
        rounds: Of each measurement of a step.
        loop_rounds: Of each training.
        iterations: Of a timed training.
        models: The shapes.
        copied: Bytes of the copy that the bandwidth is compared with.
    """

    device: Device
    rounds: int = 15
    loop_rounds: int = 3
    iterations: int = 100
    models: Mapping[str, Model] | None = None
    copied: int = 2**30

    def model(self, name: str) -> Model:
        """The shapes by name."""
        return (self.models or MODELS)[name]


def host_time(call: Callable[[], object], device: Device) -> float:
    """Microseconds until a call returns, the median of a few that nobody waits for."""
    device.synchronize()
    marks = [time.perf_counter_ns()]
    for _ in range(HOST_CALLS):
        call()
        marks.append(time.perf_counter_ns())
    device.synchronize()
    return statistics.median((b - a) / 1e3 for a, b in itertools.pairwise(marks))


def measure_step(plan: Plan, name: str, rule: str, variants: Sequence[str]) -> dict[str, Any]:
    """All figures of one rule on the shapes of one model, as a JSON object; times in microseconds."""
    device, model, kind = plan.device, plan.model(name), RULES[rule]
    arena, copy, clock = DeviceArena(model, rule, device), Copy(device, plan.copied), clock_for(device.torch)
    verdicts = arena.check([variant for variant in variants if variant != APEX])
    calls: dict[str, Callable[[], object]] = {variant: arena.step(variant) for variant in variants}
    calls[COPY] = copy
    times: dict[str, list[float]] = {variant: [] for variant in calls}
    host: dict[str, list[float]] = {variant: [] for variant in calls}
    for call in calls.values():
        for _ in range(WARM_UP):
            arena.write_grads()
            call()
    for variant in interleaved(list(calls), plan.rounds):
        repeats = 1 if variant == COPY else model.repeats
        arena.write_grads()
        device.synchronize()
        times[variant].append(time_call(calls[variant], clock, repeats))
        host[variant].append(host_time(calls[variant], device))
    moved = model.elements * kind.bytes_per_element
    figures: dict[str, Any] = {}
    for variant in variants:
        seen = launches(calls[variant], device)
        speed = [moved / us for us in times[variant]]
        figures[variant] = {
            "time": asdict(Spread.of(times[variant])),
            "host": asdict(Spread.of(host[variant])),
            "gb_per_s": statistics.median(speed) / 1e3,
            "copy_share": asdict(ratio(speed, [copy.moved / us for us in times[COPY]])),
            "ratio": asdict(ratio(times[variant], times[OURS])),
            "launches": asdict(seen) if seen else None,
        }
        if variant in verdicts:
            figures[variant] |= {"correct": verdicts[variant].correct, "error": asdict(verdicts[variant].error)}
    copied = {"time": asdict(Spread.of(times[COPY])), "gb_per_s": copy.moved / statistics.median(times[COPY]) / 1e3}
    shape = {"model": name, "optimizer": rule, "tensors": len(model.shapes), "elements": model.elements, "bytes": moved}
    return {**shape, "copy": copied, "variants": figures, "passed": figures[OURS]["correct"]}


def measure_graph(plan: Plan, name: str, rule: str) -> dict[str, Any]:
    """Capturing a step as a graph, and replaying it; without a GPU a graph is the call itself."""
    device, clock = plan.device, clock_for(plan.device.torch)
    arena = DeviceArena(plan.model(name), rule, device)
    variants = GRAPH_VARIANTS if device.is_cuda else (OURS,)  # torch has none for the CPU
    replays: dict[str, Callable[[], object]] = {}
    captures = {}
    for variant in variants:
        step = arena.optimizer(variant, **({} if rule == "sgd" else {"capturable": True})).step
        for _ in range(WARM_UP):
            step()
        device.synchronize()
        begin = time.perf_counter_ns()
        replays[variant] = device.capture(step)
        captures[variant] = (time.perf_counter_ns() - begin) / 1e3
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for variant in interleaved(variants, plan.rounds):
        device.synchronize()
        times[variant].append(time_call(replays[variant], clock, 10))
    figures = {
        variant: {
            "capture": captures[variant],
            "replay": asdict(Spread.of(values)),
            "ratio": asdict(ratio(values, times[OURS])),
        }
        for variant, values in times.items()
    }
    return {"model": name, "optimizer": rule, "variants": figures, "passed": True}


def measure_loop(plan: Plan, workload: str, rule: str) -> dict[str, Any]:
    """Whole trainings, as `train_loop.py` measures and judges them."""
    settings = argparse.Namespace(
        device=plan.device.torch,
        variants=LOOP_VARIANTS,
        rounds=plan.loop_rounds,
        iterations=plan.iterations,
        zero_grad="separate",
    )
    result = TrainingCase(workload, rule, settings).run(lambda: None)
    return {**result, "passed": result["variants"][OURS]["correct"]}


def units(plan: Plan) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Everything that is timed, the most important first, with its name."""
    variants = [*(name for name in NAMES if name in VARIANTS), *([APEX] if plan.device.is_cuda and has_apex() else [])]
    if APEX not in variants:
        print("times: apex cannot be imported, so it is not compared with")
    calls: dict[str, Callable[[], dict[str, Any]]] = {}
    for model, rule in STEPS[:4]:
        calls[f"step {model} {rule}"] = partial(measure_step, plan, model, rule, variants)
    for workload, rule in LOOPS[:2]:
        calls[f"loop {workload} {rule}"] = partial(measure_loop, plan, workload, rule)
    for model, rule in (("400x64", "adam"), ("gpt2", "adam")):
        calls[f"graph {model} {rule}"] = partial(measure_graph, plan, model, rule)
    for model, rule in STEPS[4:]:
        calls[f"step {model} {rule}"] = partial(measure_step, plan, model, rule, variants)
    for workload, rule in LOOPS[2:]:
        calls[f"loop {workload} {rule}"] = partial(measure_loop, plan, workload, rule)

    def collected(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        gc.collect()  # the tensors of the measurement before
        return call()

    yield from ((name, partial(collected, call)) for name, call in calls.items())


def rehearsal() -> Plan:
    """All measurements on the CPU, on tensors so small that they take no time: figures that mean nothing."""
    models = {name: Model(((7, 9), (65,)), 1, repeats=2) for name in MODELS}
    return Plan(Device("cpu"), rounds=3, loop_rounds=1, iterations=2, models=models, copied=2**16)
