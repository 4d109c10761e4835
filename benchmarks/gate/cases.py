"""What the gate on performance counts: steps and zero_grad on four shapes, and planted slowdowns.

It runs under callgrind, in a process that `counted.py` has set up, and on the machine's own processor as well as
any other Python code does; only the client requests in `client.cpp` then do nothing.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import fusedoptim
from benchmarks.shared.measure import Call
from benchmarks.shared.shapes import MODELS, Shape
from benchmarks.shared.variants import OURS, VARIANTS
from fusedoptim import native

CALLS = 2  # counted of each: a step walks memory the other way round than the one before it
WARM_UP = 4
SETTLE = 4  # uncounted right before: Python's caches of attributes may know the other optimizer's
INSTRUCTION_SETS = ("avx2", "baseline")  # valgrind knows no AVX-512
# An emulated processor is slow, so tensors are cut: what a tensor costs and what an element costs stay the same. The
# first limit leaves the largest tensor of the tutorial in two chunks; the last two leave 161 and 148 tensors.
LIMITS = {"4x64": 64, "400x64": 64, "tutorial-mlp": 32768, "resnet50": 2048, "gpt2": 2048}
PLANTED = "planted"


def cut(shape: Shape, limit: int) -> Shape:
    """The shape with its longest dimension halved until it has at most `limit` elements."""
    sizes = list(shape)
    while prod(sizes) > limit:
        longest = sizes.index(max(sizes))
        sizes[longest] //= 2
    return tuple(sizes)


def shapes_of(model: str) -> list[Shape]:
    """The shapes that are counted for `model`, a key of `LIMITS`."""
    whole = ((64,),) * 4 if model == "4x64" else MODELS[model].shapes
    return [cut(shape, LIMITS[model]) for shape in whole]


class Setting:
    def __init__(self, model: str, rule: str) -> None:
        self.params = [torch.nn.Parameter(torch.full(shape, 0.5)) for shape in shapes_of(model)]
        self.grads = [torch.full_like(p, 0.25) for p in self.params]
        self.optimizer = VARIANTS[OURS].build(rule, self.params, 1e-3)

    def write_grads(self) -> None:
        for p, g in zip(self.params, self.grads, strict=True):
            p.grad = g

    def calls(self) -> dict[str, Call]:
        """What a training loop calls, by name."""
        step, zero_grad = self.optimizer.step, self.optimizer.zero_grad
        return {
            "step": step,
            "step-to_zero": partial(step, zero_grad="to_zero"),
            "step-to_none": partial(step, zero_grad="to_none"),
            "zero_grad": zero_grad,
            "zero_grad-zeros": partial(zero_grad, set_to_none=False),
        }


@dataclass(frozen=True)
class Case:
    name: str  # model, rule, instruction set and call
    setting: Setting  # what it is called on
    call: str  # the key of `Setting.calls`
    instruction_set: str
    planted: Callable[[], AbstractContextManager[Any]] = nullcontext  # what makes it slower while it is counted

    def run(self, times: int) -> Call:
        call = self.setting.calls()[self.call]
        for _ in range(times):
            self.setting.write_grads()
            call()
        return call


def plant_step(extra: Callable[[Any], object]) -> AbstractContextManager[Any]:
    """Has `Adam.step` do something more for as long as the context lasts."""
    step = fusedoptim.Adam.step

    def slower(self: Any, *args: Any, **kwargs: Any) -> Any:
        extra(self)
        return step(self, *args, **kwargs)

    return patch.object(fusedoptim.Adam, "step", slower)


def look_at_params(optimizer: Any) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad  # noqa: B018


def pass_over_grads(optimizer: Any) -> None:
    torch._foreach_mul_([p.grad for group in optimizer.param_groups for p in group["params"]], 1.0)


def wrong_kernels() -> AbstractContextManager[Any]:
    native.set_instruction_set("baseline")
    return nullcontext()


TORCHS = partial(patch.object, fusedoptim.Adam, "zero_grad", torch.optim.Optimizer.zero_grad)
PLANTS = (
    ("400x64", "step", "a Python loop over the parameters in step", partial(plant_step, look_at_params)),
    ("400x64", "zero_grad", "torch's zero_grad, a Python loop over the parameters", TORCHS),
    ("tutorial-mlp", "step", "a second pass over the gradients", partial(plant_step, pass_over_grads)),
    ("tutorial-mlp", "step", "kernels of a narrower instruction set", wrong_kernels),
)


def cases(planted: bool) -> Iterator[Case]:
    """All that is counted: both rules' steps with each instruction set, and what else a loop calls once."""
    settings = {(model, rule): Setting(model, rule) for model in LIMITS for rule in ("adam", "sgd")}
    for (model, rule), setting in settings.items():
        for instruction_set in INSTRUCTION_SETS:
            calls = setting.calls() if rule == "adam" and instruction_set == "avx2" else ("step",)
            for call in calls:
                yield Case(f"{model} {rule} {instruction_set} {call}", setting, call, instruction_set)
    for model, call, what, plant in PLANTS if planted else ():
        yield Case(f"{model} adam avx2 {call} {PLANTED}: {what}", settings[model, "adam"], call, "avx2", plant)


def count_all(client: Path, path: str) -> None:
    """Counts everything with `client.cpp`, compiled; `path` is how this process steps: "fast" or "general"."""
    direct_error = fusedoptim.build_info()["direct_error"]
    if (path == "fast") == bool(direct_error):
        raise RuntimeError(f"FUSEDOPTIM_DIRECT did not choose the {path} path: {direct_error}")
    library = ctypes.PyDLL(str(client))
    library.count.argtypes = [ctypes.py_object, ctypes.py_object, ctypes.c_int, ctypes.c_char_p]
    library.count.restype = library.start_instrumentation.restype = None
    todo = list(cases(path == "fast"))
    for case in todo:
        native.set_instruction_set(case.instruction_set)
        with case.planted():
            case.run(WARM_UP)
    library.start_instrumentation()
    for case in todo:
        native.set_instruction_set(case.instruction_set)
        with case.planted():
            call = case.run(SETTLE)
            library.count(case.setting.write_grads, call, CALLS, f"{path} {case.name}".encode())
