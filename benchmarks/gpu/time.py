"""Times on a device: of the step beside a copy of memory, of its call on the host, of whole training loops.

All variants and the copy take turns in changing order within rounds. Before each measurement the gradients are written
anew and the device has nothing to do: what is timed with events is what a loop of such steps takes, with the host's
share where the host is slower. The host's own time is that of calls which nobody waits for, few enough for the queue of
launches; torch's for-loop fills it all the same, and then its time is the device's.
"""

import gc
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from benchmarks.gpu.arena import Copy, launches
from benchmarks.gpu.device import Device
from benchmarks.shared.arena import Arena
from benchmarks.shared.measure import Call, clock_for, interleaved, ratio, spread, time_call, time_rounds
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
    device: Device
    rounds: int = 15  # of each measurement of a step
    loop_rounds: int = 3  # of each training
    iterations: int = 100  # of a timed training
    models: Mapping[str, Model] | None = None  # the shapes
    copied: int = 2**30  # bytes of the copy that the bandwidth is compared with: far more than any cache holds

    def model(self, name: str) -> Model:
        return (self.models or MODELS)[name]


def host_time(call: Call, device: Device) -> float:
    """Microseconds until a call returns, the median of a few that nobody waits for."""
    device.synchronize()
    times = time_rounds({0: call}, HOST_CALLS)[0]
    device.synchronize()
    return statistics.median(times)


def measure_step(plan: Plan, name: str, rule: str) -> Unit:
    """All figures of one rule on the shapes of one model, as a JSON object; times in microseconds."""
    device, model, kind = plan.device, plan.model(name), RULES[rule]
    arena, clock = Arena(model, rule, device=device.torch), clock_for(device.torch)
    copy = Copy(device, plan.copied)
    verdicts = arena.check(NAMES)
    calls: dict[str, Call] = {variant: arena.step(variant) for variant in NAMES} | {COPY: copy}
    times: dict[str, list[float]] = {variant: [] for variant in calls}
    host: dict[str, list[float]] = {variant: [] for variant in calls}
    for call in calls.values():
        for _ in range(WARM_UP):
            arena.write_grads()
            call()
    for variant in interleaved(list(calls), plan.rounds):
        arena.write_grads()
        device.synchronize()
        times[variant].append(time_call(calls[variant], clock, 1 if variant == COPY else model.repeats))
        host[variant].append(host_time(calls[variant], device))
    moved = model.elements * kind.bytes_per_element
    figures: dict[str, Any] = {}
    for variant in NAMES:
        seen = launches(calls[variant], device)
        speed = [moved / us for us in times[variant]]
        figures[variant] = {
            "time": spread(times[variant]),
            "host": spread(host[variant]),
            "gb_per_s": statistics.median(speed) / 1e3,
            "copy_share": ratio(speed, [copy.moved / us for us in times[COPY]]),
            "ratio": ratio(times[variant], times[OURS]),
            "launches": asdict(seen) if seen else None,
            **asdict(verdicts[variant]),
        }
    copied = {"time": spread(times[COPY]), "gb_per_s": copy.moved / statistics.median(times[COPY]) / 1e3}
    shape = {"model": name, "optimizer": rule, "tensors": len(model.shapes), "elements": model.elements, "bytes": moved}
    return {**shape, "copy": copied, "variants": figures, "passed": figures[OURS]["correct"]}


def measure_loop(plan: Plan, workload: str, rule: str) -> Unit:
    how = workload, rule, LOOP_VARIANTS, plan.loop_rounds, plan.iterations
    result = TimedTraining(*how, device=plan.device.torch).run()
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
    return Plan(Device("cpu"), rounds=3, loop_rounds=1, iterations=2, models=models, copied=2**16)
