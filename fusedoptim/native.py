"""The compiled module: the only place that imports it."""

from __future__ import annotations

import os
import platform
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.autograd import forward_ad

from fusedoptim.torch_internals import modes

try:
    import fusedoptim._C as _C

    load_error: ImportError | None = None
except ImportError as error:
    _C = None  # type: ignore[assignment]
    load_error = error

# The releases of torch, oldest first, on which the tests of the fast path have run; it reads torch's tensor objects, of
# which no other need be the same. FUSEDOPTIM_DIRECT=1 tries it on any, FUSEDOPTIM_DIRECT=0 turns it off.
TESTED_TORCH = ("2.10.0", "2.13.0", "2.14.1")

has_cuda = bool(getattr(_C, "cuda_architectures", []))  # whether CUDA kernels are built

_get_num_threads = torch.get_num_threads
_SOURCE = Path(__file__).resolve().parent.parent
_HINT = (
    "install a C++17 compiler (g++ or clang++) and reinstall fusedoptim with FUSEDOPTIM_NATIVE=1 to see its errors, "
    "and with pip's --no-cache-dir, which may keep a wheel without the module"
)


def available() -> bool:
    """Whether the compiled module could be loaded."""
    return _C is not None


def why_missing() -> str:
    """Why the compiled module is missing and what to do, in one line."""
    hint = _HINT
    causes, error = [], load_error
    while error is not None:  # the first says where it failed, and the last why
        causes.append(str(error))
        error = error.__cause__  # type: ignore[assignment]
    if load_error is not None and not isinstance(load_error, ModuleNotFoundError):
        hint = "it is there, and what this names is missing or of another version: mend that, or reinstall fusedoptim"
    elif (_SOURCE / "csrc").is_dir():
        hint = (
            f"this is the package in its source folder {_SOURCE}, which Python finds first: start from another folder "
            f"if fusedoptim is installed, or {_HINT}"
        )
    return f"the compiled module fusedoptim._C could not be loaded ({': '.join(causes)}); {hint}"


def _choose_instruction_set(name: str | None) -> Any:
    if _C is None:
        return None
    supported = {entry.name: entry for entry in _C.supported()}
    if name is None:
        return next(iter(supported.values()))
    if name not in supported:
        built = [entry.name for entry in _C.built()]
        cause = "this processor does not support it" if name in built else f"this build has only {', '.join(built)}"
        raise RuntimeError(f"FUSEDOPTIM_ISA={name}: {cause}; usable here: {', '.join(supported)}")
    return supported[name]


def _learn_layout() -> str | None:
    """Let the module learn where torch keeps the words of a tensor; the reason why it has not, or None."""
    wish, release = os.environ.get("FUSEDOPTIM_DIRECT"), torch.__version__.split("+")[0]
    if _C is None:
        return "this build has no compiled module"
    if wish == "0":
        return "turned off by FUSEDOPTIM_DIRECT=0"
    if wish != "1" and release not in TESTED_TORCH:
        return (
            f"torch {release} is none of those that it was tested on ({', '.join(TESTED_TORCH)}); FUSEDOPTIM_DIRECT=1, "
            "set before the import, tries"
        )
    problem: list[str] = []

    def learn() -> None:
        try:
            _C.learn_layout()
        except Exception as error:
            problem.append(str(error))

    try:
        thread = threading.Thread(target=learn)  # in which no mode of torch is active, whatever is here
        thread.start()
        thread.join()
    except RuntimeError as error:
        return f"no thread could be started to learn where torch keeps its tensors: {error}"
    return problem[0] if problem else None


direct_error = _learn_layout()


def set_instruction_set(name: str | None) -> None:
    """Use the kernels of another instruction set from now on, in the whole process; for tests and bisecting.

    Args:
        name: ``baseline``, ``avx2`` or ``avx512``; None for the best that this processor runs. The results do not
            depend on it.

    Raises:
        RuntimeError: The build lacks it, or the processor does.
    """
    global _instruction_set
    _instruction_set = _choose_instruction_set(name)
    if _C is not None:
        _C.set_instruction_set(_instruction_set)


_instruction_set: Any
set_instruction_set(os.environ.get("FUSEDOPTIM_ISA") or None)


class NativeExecutor:
    """One step in the compiled kernels: the fast path, or ``prepare`` (read and check) and ``apply`` (write)."""

    backend = "native"

    def __init__(self, rule: str, torch_parts: tuple[tuple[str, Any], ...]) -> None:
        self.torch_parts = torch_parts
        self._executor = _C.StepExecutor(rule, torch_parts, modes.CHECKS, vars(forward_ad), modes.watch_operations)
        self.fast_step = self._executor.fast_step
        self.measuring_step = self._executor.measuring_step
        self.is_ours = self._executor.is_ours
        self.prepare = self._executor.prepare
        self.prepare_limited = self._executor.prepare_limited
        self.is_skipped_by_host = self._executor.is_skipped_by_host
        self.clear = self._executor.clear
        self.explain = self._executor.explain

    def apply(
        self,
        state: dict[Any, Any],
        zero_grad: bool,
        grad_scale: Any = None,
        found_inf: Any = None,
        set_to_none_in: Any = None,
    ) -> bool:
        """Take the prepared step, or return False where a tensor was replaced since; see ``backend.StepExecutor``.

        Both numbers may be tensors on a CUDA device, which are read there. With ``found_inf`` the step is taken only
        if it is 0.
        """
        threads = _get_num_threads()
        taken: bool = self._executor.apply(
            state, _instruction_set, threads, zero_grad, grad_scale, found_inf, set_to_none_in
        )
        return taken

    def zero_grads(self, groups: list[dict[str, Any]], even_if_watched: bool = False) -> bool:
        """Write zeros over all gradients in one call; or return False, where a mode is active, unless told to go on."""
        return bool(self._executor.zero_grads(groups, _get_num_threads(), even_if_watched))


def zeros_like(param: torch.Tensor, dtype: torch.dtype | None = None, is_row_major: bool = False) -> torch.Tensor:
    """``torch.zeros_like`` in the layout of the parameter, on our thread pool: torch's hangs in a forked child."""
    layout = torch.contiguous_format if is_row_major else torch.preserve_format
    if _C is not None and param.device.type == "cpu" and type(param) in (torch.Tensor, torch.nn.Parameter):
        made = torch.empty_like(param, dtype=dtype, requires_grad=False, memory_format=layout)
        if _C.zero(made, _get_num_threads()):
            return made
    return torch.zeros_like(param, dtype=dtype, requires_grad=False, memory_format=layout)


class _Grads:
    """``_C.Grads``, in as many threads as torch is told to use."""

    def __init__(self, lists: list[list[torch.Tensor]]) -> None:
        self._grads = _C.Grads(lists)
        self.others, self.samples = self._grads.others, self._grads.samples
        self.are_as_found = self._grads.are_as_found

    def __len__(self) -> int:
        return len(self._grads)

    def sum_squares(self, of_others: list[float], grad_scale: float | None) -> float:
        return float(self._grads.sum_squares(of_others, grad_scale, _get_num_threads()))

    def are_plain(self) -> bool:
        return not self.others()

    def unscale(self, grad_scale: float) -> float:
        return float(self._grads.unscale(grad_scale, _get_num_threads()))

    def scale(self, factor: float) -> None:
        self._grads.scale(factor, _get_num_threads())


def grads(lists: list[list[torch.Tensor]]) -> Any:
    """The gradients of lists of parameters, to be measured and scaled together."""
    return _Grads(lists)


def norm_driver() -> Any:
    """What keeps the device tables of norms on CUDA devices."""
    return _C.NormDriver()


def device_grads(grads: list[torch.Tensor], driver: Any) -> Any:
    """Gradients to be measured on the CUDA device that all of them lie on; None if they do not."""
    return _C.DeviceGrads.of(grads, driver)


def lies_on_cuda(tensor: Any) -> bool:
    """Whether it is a plain tensor on a CUDA device."""
    return bool(_C.lies_on_cuda(tensor))


def set_grads_to_none(groups: list[dict[str, Any]]) -> None:
    """Set the gradients of all parameters of ``groups`` to None in one call."""
    _C.set_grads_to_none(groups)


def is_on_cuda(number: Any) -> bool:
    """Whether it is one number in a plain tensor on a CUDA device, which the kernels can read there."""
    return _C is not None and bool(_C.is_on_cuda(number))


def build_info() -> dict[str, Any]:
    """What this installation is and what it runs on.

    Returns:
        ``version``, ``torch``, ``python`` and ``platform``; ``native``, whether the compiled module is in use, and
        ``native_error``, why not and what to do; ``compiler``; ``openmp``, the OpenMP version it was built with;
        ``instruction_sets_built``, ``instruction_sets_supported`` (those that this processor runs, best first) and
        ``instruction_set``, the one in use; ``cuda``, whether CUDA kernels are built; ``cuda_architectures``, those
        that they are built for, such as 9.0 as machine code and 9.0+PTX as PTX, which serves later ones too;
        ``cuda_compiler``; ``cuda_runtime``, the version of the runtime library that the module holds;
        ``cuda_error``, why CUDA cannot be used here, such as a missing driver; ``direct_error``, why steps do not take
        the fast path, on which they read torch's tensor objects directly, None if they do; ``threads``, as
        ``torch.get_num_threads()`` says. It asks the driver for its devices, and takes none into use.
    """
    return {
        "version": metadata.version("fusedoptim"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "native": available(),
        "native_error": None if load_error is None else why_missing(),
        "compiler": getattr(_C, "compiler", None),
        "openmp": getattr(_C, "openmp", None),
        "instruction_sets_built": [entry.name for entry in _C.built()] if available() else [],
        "instruction_sets_supported": [entry.name for entry in _C.supported()] if available() else [],
        "instruction_set": _instruction_set.name if available() else None,
        "cuda": has_cuda,
        "cuda_architectures": list(getattr(_C, "cuda_architectures", [])),
        "cuda_compiler": getattr(_C, "cuda_compiler", None),
        "cuda_runtime": getattr(_C, "cuda_runtime", None),
        "cuda_error": getattr(_C, "cuda_error", lambda: "this build has no CUDA kernels")(),
        "direct_error": direct_error,
        "threads": torch.get_num_threads(),
    }
