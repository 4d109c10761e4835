"""What a step on a device is compared with, a copy of its memory; and what a step launches."""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.device import Device
from benchmarks.shared.measure import Call


class Copy:
    """A copy within the memory of the device, which reads `count` bytes: what its bandwidth is measured against."""

    def __init__(self, device: Device, count: int) -> None:
        self.source = torch.ones(count // 4, device=device.torch)
        self.target = torch.empty_like(self.source)
        self.moved = 2 * count

    def __call__(self) -> Tensor:
        return self.target.copy_(self.source)


@dataclass(frozen=True)
class Launches:
    """What a call has run on the GPU, by the trace of torch's profiler."""

    kernels: int
    copies: int  # and fillings of memory that are no kernels
    device_us: float  # microseconds of all of these
    names: Mapping[str, int]  # how often each kernel, by the beginning of its name

    @classmethod
    def of(cls, trace: Mapping[str, Any]) -> "Launches | None":
        """Reads a trace in Chrome's format; None if it shows no launch: then the profiler saw nothing of the GPU."""
        events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
        kernels = [event for event in events if event.get("cat") == "kernel"]
        copies = [event for event in events if event.get("cat") in ("gpu_memcpy", "gpu_memset")]
        names = Counter(str(event["name"])[:80] for event in kernels)
        time = sum(event["dur"] for event in kernels + copies)
        return cls(len(kernels), len(copies), time, dict(names.most_common(5))) if kernels else None


def launches(call: Call, device: Device) -> Launches | None:
    """Profiles two calls, and reads the trace of the second: in the first the profiler may still be starting."""
    kinds = torch.profiler.ProfilerActivity
    for _ in range(2):
        with torch.profiler.profile(activities=[kinds.CPU, *([kinds.CUDA] * device.is_cuda)]) as profile:
            call()
            device.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        return Launches.of(json.loads(path.read_text()))
