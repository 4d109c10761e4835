"""What `run.py` measures: rules, dtypes, and sizes that fit the caches of the machine or do not."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from benchmarks.shared.measure import CPU, cache_levels, cpus_in
from benchmarks.shared.shapes import MODELS, Model
from benchmarks.shared.variants import ALL_RULES, DTYPES, LABELS

MIB = 1 << 20
OTHER_MODELS = ("tutorial-mlp", "resnet50", "400x64")  # the one that takes longest to compile comes last
STRIDE = 61  # of a large model one in so many elements is checked: no divisor of a vector's length
LARGE = 4 * MIB  # elements


@dataclass(frozen=True)
class Case:
    place: str  # "L2", "L3", "memory", or "shapes" for known models beside torch.compile
    model_name: str  # of `MODELS`; in the caches the place, where there is one parameter
    model: Model
    rule: str  # a key of `LABELS`
    dtype: str  # a key of `DTYPES`

    @property
    def key(self) -> tuple[str, str]:
        return self.model_name, f"{LABELS[self.rule]}, {self.dtype}"

    @property
    def bytes(self) -> int:
        """Traffic of a step: all operands are read, all but the gradient are written."""
        return self.model.elements * DTYPES[self.dtype].itemsize * ALL_RULES[self.rule].accesses

    @property
    def held(self) -> int:
        """Bytes of all operands."""
        return self.model.elements * DTYPES[self.dtype].itemsize * ALL_RULES[self.rule].operands


def caches(threads: int, root: Path = CPU) -> dict[str, int]:
    """Bytes of the unified caches that so many threads have, each on a core of its own; RuntimeError if unknown."""
    levels = {name: cache for name, cache in cache_levels(root).items() if cache["kind"] == "Unified"}
    found = {name: -(-threads // cpus_in(cache["users"])) * cache["bytes"] for name, cache in levels.items()}
    if "L2" not in found:
        raise RuntimeError(f"{root} does not tell the size of the second-level cache")
    return found


def budgets(caches: Mapping[str, int]) -> dict[str, int]:
    """Bytes for all operands together: three quarters of the second level, a quarter of the third, at most 64 MiB.

    The third level is left out where that would not be well beyond the second.
    """
    third = min(caches.get("L3", 0) // 4, 64 * MIB)
    return {"L2": caches["L2"] * 3 // 4, **({"L3": third} if third >= 2 * caches["L2"] else {})}


def make_cases(budgets: Mapping[str, int]) -> Iterator[Case]:
    counts = {"L2": (60, 40), "L3": (15, 6)}  # rounds, steps in a row
    for (place, budget), rule, dtype in product(budgets.items(), LABELS, DTYPES):
        elements = budget // (ALL_RULES[rule].operands * DTYPES[dtype].itemsize) // 64 * 64
        yield Case(place, place, Model(((elements,),), *counts[place]), rule, dtype)
    for rule, dtype in product(LABELS, DTYPES):
        yield Case("memory", "gpt2", replace(MODELS["gpt2"], rounds=11), rule, dtype)
    for name, rule in product(OTHER_MODELS, ("sgd", "adam")):
        yield Case("shapes", name, MODELS[name], rule, "fp32")
