"""Times on a device: of the step beside a copy of memory, of its call on the host, of whole training loops.

All variants and the copy take turns in changing order within rounds. Before each measurement the gradients are written
anew and the device has nothing to do: what is timed with events is what a loop of such steps takes, with the host's
share where the host is slower. The host's own time is that of calls which nobody waits for, few enough for the queue of
launches; torch's for-loop fills it all the same, and then its time is the device's.
"""

import gc
import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.shared.arena import Arena, figures_of
from benchmarks.shared.measure import Call, clock_for, in_rounds, ratio, spread, time_call, time_rounds
from benchmarks.shared.shapes import MODELS, Model
from benchmarks.shared.timed_training import TimedTraining
from benchmarks.shared.variants import OURS, RULES

COPY = "copy"
WARM_UP = 3
HOST_CALLS = 5  # in the queue at a time, whose launches it holds easily
NAMES = ("torch-forloop", "torch-foreach", "torch-fused", OURS)
LOOP_VARIANTS = ("torch-default", "torch-foreach", "torch-fused", OURS)
LOOPS = (("tutorial", "adam"), ("bytes-gpt", "adam"), ("tutorial", "sgd"), ("bytes-gpt", "adamw"))
# What the targets rest on comes first: the budget may not last for all.
STEPS = (
    *(("gpt2", rule) for rule in ("adam", "sgd", "adamw")),
    *((model, rule) for rule in ("adam", "sgd", "adamw") for model in ("400x64", "resnet50", "tutorial-mlp")),
)
Unit = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    device: torch.device
    rounds: int = 15  # of each measurement of a step
    loop_rounds: int = 3  # of each training
    iterations: int = 100  # of a timed training
    models: Mapping[str, Model] | None = None  # the shapes
    copied: int = 2**30  # bytes of the copy that the bandwidth is compared with: far more than any cache holds

    def model(self, name: str) -> Model:
        return (self.models or MODELS)[name]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Copy:
    """A copy within the memory of the device, which reads `count` bytes: what its bandwidth is measured against."""

    def __init__(self, device: torch.device, count: int) -> None:
        self.source = torch.ones(count // 4, device=device)
        self.target = torch.empty_like(self.source)
        self.moved = 2 * count

    def __call__(self) -> Tensor:
        return self.target.copy_(self.source)


@dataclass(frozen=True)
class Launches:
    """What a call has run on the GPU, by the trace of torch's profiler."""

    kernels: int
    device_us: float  # microseconds of these, and of copies and fillings of memory that are no kernels

    @classmethod
    def of(cls, trace: Mapping[str, Any]) -> "Launches | None":
        """Reads a trace in Chrome's format; None if it shows no launch: then the profiler saw nothing of the GPU."""
        events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
        kernels = sum(event.get("cat") == "kernel" for event in events)
        time = sum(event["dur"] for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"))
        return cls(kernels, time) if kernels else None


def launches(call: Call, device: torch.device) -> Launches | None:
    """Profiles two calls, and reads the trace of the second: in the first the profiler may still be starting."""
    kinds = torch.profiler.ProfilerActivity
    for _ in range(2):
        with torch.profiler.profile(activities=[kinds.CPU, *([kinds.CUDA] * (device.type == "cuda"))]) as profile:
            call()
            synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        return Launches.of(json.loads(path.read_text()))


def host_time(call: Call, device: torch.device) -> float:
    """Microseconds until a call returns, the median of a few that nobody waits for."""
    synchronize(device)
    times = time_rounds({0: call}, HOST_CALLS)[0]
    synchronize(device)
    return statistics.median(times)


def measure_step(plan: Plan, name: str, rule: str) -> Unit:
    """All figures of one rule on the shapes of one model, as a JSON object; times in microseconds."""
    device, model, kind = plan.device, plan.model(name), RULES[rule]
    arena, clock = Arena(model, rule, device=device), clock_for(device)
    copy = Copy(device, plan.copied)
    verdicts = arena.check(NAMES)
    calls: dict[str, Call] = {variant: arena.step(variant) for variant in NAMES} | {COPY: copy}
    for call in calls.values():
        for _ in range(WARM_UP):
            arena.write_grads()
            call()

    def take(variant: str) -> tuple[float, float]:
        arena.write_grads()
        synchronize(device)
        time = time_call(calls[variant], 1 if variant == COPY else model.repeats, clock)
        return time, host_time(calls[variant], device)

    taken = {variant: list(zip(*pairs, strict=True)) for variant, pairs in in_rounds(calls, plan.rounds, take).items()}
    times = {variant: pair[0] for variant, pair in taken.items()}
    moved = model.elements * kind.bytes_per_element
    figures = figures_of({variant: times[variant] for variant in NAMES}, verdicts)
    for variant in NAMES:
        seen = launches(calls[variant], device)
        speed = [moved / us for us in times[variant]]
        figures[variant] |= {
            "host": spread(taken[variant][1]),
            "gb_per_s": statistics.median(speed) / 1e3,
            "copy_share": ratio(speed, [copy.moved / us for us in times[COPY]]),
            "launches": asdict(seen) if seen else None,
        }
    copied = {"time": spread(times[COPY]), "gb_per_s": copy.moved / statistics.median(times[COPY]) / 1e3}
    shape = {"model": name, "optimizer": rule, "tensors": len(model.shapes), "elements": model.elements, "bytes": moved}
    return {**shape, "copy": copied, "variants": figures, "passed": figures[OURS]["correct"]}


def measure_loop(plan: Plan, workload: str, rule: str) -> Unit:
    how = workload, rule, LOOP_VARIANTS, plan.loop_rounds, plan.iterations
    result = TimedTraining(*how, device=plan.device).run()
    return {**result, "passed": result["variants"][OURS]["correct"]}


def units(plan: Plan) -> Iterator[tuple[str, partial[Unit]]]:
    """Everything that is timed, the most important first, with its name."""

    def collected(measure: Any, *arguments: Any) -> Unit:
        gc.collect()  # the tensors of the measurement before
        return measure(plan, *arguments)  # type: ignore[no-any-return]

    for steps, loops in ((STEPS[:4], LOOPS[:2]), (STEPS[4:], LOOPS[2:])):
        for model, rule in steps:
            yield f"step {model} {rule}", partial(collected, measure_step, model, rule)
        for workload, rule in loops:
            yield f"loop {workload} {rule}", partial(collected, measure_loop, workload, rule)


def rehearsal() -> Plan:
    """All measurements on the CPU, on tensors so small that they take no time: figures that mean nothing."""
    models = {name: Model(((7, 9), (65,)), 1, repeats=2) for name in MODELS}
    return Plan(torch.device("cpu"), rounds=3, loop_rounds=1, iterations=2, models=models, copied=2**16)
