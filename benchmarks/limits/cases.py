"""What `limits.py` measures: rules, dtypes, and sizes that fit the caches of the machine or do not."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch

from benchmarks.shared.shapes import MODELS, Model
from benchmarks.shared.variants import ALL_RULES

CPU = Path("/sys/devices/system/cpu")
MIB = 1 << 20
LABELS = {
    "adam": "Adam",
    "adamw-decay": "AdamW",
    "adam-amsgrad": "Adam, amsgrad",
    "sgd-plain": "SGD",
    "sgd": "SGD, momentum",
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TARGETS = {"L2": 0.85, "L3": 0.85, "memory": 0.97}  # shares of the limit
MEMORY_MODEL = "gpt2"
OTHER_MODELS = ("tutorial-mlp", "resnet50", "400x64")  # the one that takes longest to compile comes last
STRIDE = 61  # every how manieth element of a large model is checked: no divisor of a vector's length
LARGE = 4 * MIB  # elements


@dataclass(frozen=True)
class Case:
    """One row of the tables.

    Attributes:
        place: A key of `TARGETS`, or "shapes" for known models beside torch.compile.
        model_name: Of `MODELS`; in the caches the place, where there is one parameter.
        model: The shapes.
        rule: A key of `LABELS`.
        dtype: A key of `DTYPES`.
    """

    place: str
    model_name: str
    model: Model
    rule: str
    dtype: str

    @property
    def key(self) -> tuple[str, str]:
        """What it is called."""
        return self.model_name, f"{LABELS[self.rule]}, {self.dtype}"

    @property
    def bytes(self) -> int:
        """Traffic of a step: all operands are read, all but the gradient are written."""
        return self.model.elements * DTYPES[self.dtype].itemsize * ALL_RULES[self.rule].accesses

    @property
    def held(self) -> int:
        """Bytes of all operands."""
        return self.model.elements * DTYPES[self.dtype].itemsize * ALL_RULES[self.rule].operands

    @property
    def stride(self) -> int:
        """Every how manieth element is checked."""
        return STRIDE if self.model.elements > LARGE else 1

    @property
    def in_table_of_models(self) -> bool:
        """Whether the case is one of those that compare with torch.compile on the shapes of known models."""
        return self.model_name in MODELS and self.rule in ("adam", "sgd") and self.dtype == "fp32"


def size_in_bytes(text: str) -> int:
    """A size as the kernel writes it: 2048K."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    text = text.strip()
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)


def cpus_in(text: str) -> int:
    """How many processors a list of the kernel's names: 0-3,8."""
    ends = [part.split("-") for part in text.strip().split(",")]
    return sum(int(part[-1]) - int(part[0]) + 1 for part in ends)


def caches(threads: int, root: Path = CPU) -> dict[str, int]:
    """Bytes of the second- and the third-level caches that so many threads have, each on a core of its own.

    Raises:
        RuntimeError: The system does not tell.
    """
    found: dict[str, int] = {}
    for index in (root / "cpu0" / "cache").glob("index*"):
        if (index / "type").read_text().strip() == "Unified":
            sharing = cpus_in((index / "shared_cpu_list").read_text())
            instances = -(-threads // sharing)
            found["L" + (index / "level").read_text().strip()] = instances * size_in_bytes((index / "size").read_text())
    if "L2" not in found:
        raise RuntimeError(f"{root} does not tell the size of the second-level cache")
    return found


def budgets(caches: Mapping[str, int]) -> dict[str, int]:
    """Bytes for all operands together: three quarters of the second level, a quarter of the third, at most 64 MiB.

    The third level is left out where that would not be well beyond the second.
    """
    sizes = {"L2": caches["L2"] * 3 // 4}
    third = min(caches.get("L3", 0) // 4, 64 * MIB)
    if third >= 2 * caches["L2"]:
        sizes["L3"] = third
    return sizes


def fitting(budget: int, rule: str, dtype: str) -> int:
    """How many elements a parameter has, a multiple of 64, so that all operands of a step fit."""
    return budget // (ALL_RULES[rule].operands * DTYPES[dtype].itemsize) // 64 * 64


def make_cases(budgets: Mapping[str, int]) -> Iterator[Case]:
    """All cases, in the order in which they are measured."""
    counts = {"L2": (60, 40), "L3": (15, 6)}  # rounds, steps in a row
    for place, budget in budgets.items():
        for rule, dtype in product(LABELS, DTYPES):
            model = Model(((fitting(budget, rule, dtype),),), *counts[place])
            yield Case(place, place, model, rule, dtype)
    large = replace(MODELS[MEMORY_MODEL], rounds=11)
    for rule, dtype in product(LABELS, DTYPES):
        yield Case("memory", MEMORY_MODEL, large, rule, dtype)
    for name, rule in product(OTHER_MODELS, ("sgd", "adam")):
        yield Case("shapes", name, MODELS[name], rule, "fp32")
