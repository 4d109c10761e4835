"""The ways of clearing gradients and of getting memory that `pages.py` compares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Way:
    """One way; all of them take our steps of Adam.

    Attributes:
        zero_grad: "none" and "fill" are `zero_grad(set_to_none=True)` and `(False)` at the start of an iteration,
            "to_zero" is within the step.
        keep: Whether `fusedoptim.keep_freed_memory()` is called at the start.
        pad: Bytes to set glibc's `M_TOP_PAD` to at the start; 0 leaves it.
        environment: What is set before the process starts.
    """

    zero_grad: str = "none"
    keep: bool = False
    pad: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)


BASELINE, KEEP = "set_to_none=True", "keep_freed_memory"
TUNABLE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # glibc 2.35: malloc asks for huge pages
WAYS = {
    BASELINE: Way(),
    "set_to_none=False": Way("fill"),
    "to_zero": Way("to_zero"),
    KEEP: Way(keep=True),
    "keep, to_zero": Way("to_zero", keep=True),
    "keep, M_TOP_PAD": Way(keep=True, pad=256 << 20),
    "hugetlb": Way(environment=TUNABLE),
    "keep, hugetlb": Way(keep=True, environment=TUNABLE),
    "torch's THP": Way(environment={"THP_MEM_ALLOC_ENABLE": "1"}),  # torch asks, for blocks from 2 MiB on
}


def with_preloads(libraries: Sequence[Path]) -> dict[str, Way]:
    """`WAYS`, and one for each other allocator."""
    return WAYS | {path.name: Way(environment={"LD_PRELOAD": str(path.resolve())}) for path in libraries}
