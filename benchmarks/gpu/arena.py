"""The tensors and the optimizers whose steps are timed on a device, apex's among them where it is installed."""

import importlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.device import Device
from benchmarks.shared.arena import LR, Arena
from benchmarks.shared.shapes import Model
from benchmarks.shared.variants import OURS, RULES, VARIANTS

APEX = "apex"
TORCHS = ("torch-forloop", "torch-foreach", "torch-fused")
NAMES = (*TORCHS, OURS)
COPIED_BYTES = 2**30  # far more than any cache holds


def has_apex() -> bool:
    """Whether apex and its extensions can be imported."""
    with suppress(Exception):
        importlib.import_module("amp_C")
        importlib.import_module("apex.optimizers")
        return True
    return False


class DeviceArena(Arena):
    """An arena on a device; random numbers come from a generator there."""

    def __init__(self, model: Model, rule: str, device: Device) -> None:
        self.where = device.torch
        with self.where:
            super().__init__(model, rule)

    def reset(self) -> None:
        """Writes the initial values, the same each time: no step taken yet."""
        generator = torch.Generator(self.where).manual_seed(0)
        with torch.no_grad():
            for p, source in zip(self.params, self.source, strict=True):
                p.uniform_(-0.1, 0.1, generator=generator)
                source.uniform_(-0.01, 0.01, generator=generator)
        for tensor in (tensor for tensors in self.state.values() for tensor in tensors):
            tensor.zero_()
        self.write_grads()

    def optimizer(self, variant: str, **flags: Any) -> Any:
        """As in an `Arena`; apex's keep state of their own. `flags` go to the constructor."""
        if variant == APEX:
            return self.apex()
        kind = RULES[self.rule]
        given = {**kind.options, **VARIANTS[variant].flags, **flags}
        optimizer = getattr(VARIANTS[variant].module, kind.class_name)(self.params, lr=LR[self.rule], **given)
        steps_there = given.get("fused") or given.get("capturable")
        for i, p in enumerate(self.params):
            optimizer.state[p] = {name: tensors[i] for name, tensors in self.state.items()}
            if self.rule != "sgd":
                optimizer.state[p]["step"] = torch.tensor(0.0, device=self.where if steps_there else "cpu")
        return optimizer

    def apex(self) -> Any:
        """The optimizer of apex that does the same."""
        optimizers: Any = importlib.import_module("apex.optimizers")
        if self.rule == "sgd":
            return optimizers.FusedSGD(self.params, lr=LR["sgd"], **RULES["sgd"].options)
        decay = {"weight_decay": 0.01} if self.rule == "adamw" else {}
        return optimizers.FusedAdam(self.params, lr=LR[self.rule], adam_w_mode=self.rule == "adamw", **decay)


class Copy:
    """A copy within the memory of the device: what its bandwidth is measured against.

    Args:
        device: The device.
        count: Bytes that one copy reads; as many are written.
    """

    def __init__(self, device: Device, count: int = COPIED_BYTES) -> None:
        self.source = torch.ones(count // 4, device=device.torch)
        self.target = torch.empty_like(self.source)
        self.moved = 2 * count

    def __call__(self) -> Tensor:
        """Copies."""
        return self.target.copy_(self.source)


@dataclass(frozen=True)
class Launches:
    """What a call has run on the GPU, by the trace of torch's profiler.

    Attributes:
        kernels: How many kernels.
        copies: How many copies and fillings of memory that are no kernels.
        device_us: Microseconds of all of these.
        names: How often each kernel, by the beginning of its name.
    """

    kernels: int
    copies: int
    device_us: float
    names: Mapping[str, int]

    @classmethod
    def of(cls, trace: Mapping[str, Any]) -> "Launches | None":
        """Reads a trace in Chrome's format; None if it shows no launch: then the profiler saw nothing of the GPU."""
        events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
        kernels = [event for event in events if event.get("cat") == "kernel"]
        copies = [event for event in events if event.get("cat") in ("gpu_memcpy", "gpu_memset")]
        if not kernels:
            return None
        names = Counter(str(event["name"])[:80] for event in kernels)
        return cls(
            len(kernels), len(copies), sum(event["dur"] for event in kernels + copies), dict(names.most_common(5))
        )


def launches(call: Callable[[], object], device: Device) -> Launches | None:
    """Profiles one call, and then another, of which it tells: in the first the profiler may still be starting."""
    profiled(call, device)
    return Launches.of(profiled(call, device))


def profiled(call: Callable[[], object], device: Device) -> Mapping[str, Any]:
    """The trace of one call in Chrome's format."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.is_cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        call()
        device.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        trace: dict[str, Any] = json.loads(path.read_text())
        return trace
