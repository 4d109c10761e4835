from collections.abc import Callable, Iterable
from typing import Any

version: str
compiler: str
openmp: int | None
cuda_architectures: list[str]
cuda_compiler: str | None
cuda_runtime: str | None

def cuda_error() -> str | None: ...

class InstructionSet:
    @property
    def name(self) -> str: ...

def built() -> list[InstructionSet]: ...
def supported() -> list[InstructionSet]: ...

class Plan:
    def __init__(
        self,
        rule: str,
        torch_parts: Iterable[tuple[str, Any]] = (),
        mode_checks: Iterable[Callable[[], Any]] = (),
        forward_ad: dict[str, Any] = ...,
        watch_operations: Callable[[], bool] | None = None,
    ) -> None: ...
    def fast_step(
        self,
        optimizer: Any,
        zero_grad: bool,
        grad_scale: float | None,
        drop_grads: bool,
    ) -> bool: ...
    def is_ours(self, optimizer: Any) -> bool: ...
    def gather(
        self,
        groups: list[dict[str, Any]],
        state: dict[Any, Any],
        new_state: Callable[[Any, dict[str, Any]], dict[str, Any]],
        write_grads: bool,
    ) -> list[list[Any]] | None: ...
    def commit(
        self,
        state: dict[Any, Any],
        instruction_set: InstructionSet,
        threads: int,
        zero_grad: bool,
        grad_scale: Any,
        found_inf: Any,
        drop_grads_of: Any = None,
    ) -> bool: ...
    def is_skipped_by_host(self) -> bool: ...
    def zero_grads(self, groups: list[dict[str, Any]], threads: int, even_if_watched: bool = False) -> bool: ...
    def explain(
        self,
        groups: list[dict[str, Any]],
        state: dict[Any, Any],
        new_state: Callable[[Any, dict[str, Any]], dict[str, Any]],
    ) -> list[tuple[int, int, str, str]]: ...
    def clear(self) -> None: ...

def set_instruction_set(instruction_set: InstructionSet) -> None: ...
def learn_layout() -> None: ...
def zero(tensor: Any, threads: int) -> bool: ...
def drop_grads(groups: list[dict[str, Any]]) -> None: ...
def is_on_cuda(number: Any) -> bool: ...
