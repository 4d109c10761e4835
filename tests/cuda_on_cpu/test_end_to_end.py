"""The CUDA path from Python to the kernels that nvcc made, on a machine without a GPU.

Most of it is the tests of the CPU kernels, run again where tensors pose as CUDA tensors (see ``posed.py``): the public
classes, the tables, the launches and every kernel then stand between a step and the reference that it is compared with.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import building
import fresh
import machine_code
import pytest
import stand_in_module

WHY_NOT = stand_in_module.why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

# Files, how many tests of each must pass at least, and those that say what is not so on a device.
POSED = {
    "bits/test_bits": (860, ""),
    "layouts/test_layouts": (300, ""),
    "layouts/test_user_layouts": (300, ""),
    "layouts/test_shared_memory": (500, ""),
    "bits/test_driver": (250, "float32 or bfloat16"),
    "storage/test_storage_bits": (120, ""),
    "storage/test_storage_state": (60, ""),
    "dropin/test_user_changes": (120, "not reference"),
    "checkpoints/test_state": (120, "not reference"),
    "dropin/test_fallback": (30, "not reference"),
    "dropin/test_family": (100, "not reference"),
    "dropin/test_errors": (60, "not reference"),
    "amp/test_amp": (40, "not reference"),
    "dropin/test_zero_grad": (
        50,
        "not reference and not skipped_step",
    ),  # where Adam's state is there, empty, after a step that was skipped
    "clipping/test_averages": (120, "not reference"),
    "clipping/test_clipping": (110, "not reference"),
    "clipping/test_clip_settings": (300, "not reference"),
    "clipping/test_clip_grad_norm": (30, "not reference and not need_no_clipping"),  # of which only the device knows
    "clipping/test_clip_surroundings": (28, "not reference"),
    "clipping/test_pending_clips": (30, "not reference"),
    "clipping/test_grad_norm": (24, "not reference and not without_the_fast_path"),
    # What counts passes over gradients on the CPU, or divides one of which lies on the host, is left out.
    "amp/test_grad_scaler": (
        125,
        "not reference and not test_passes and not below_1 and not rounds_once and not is_a_factor "
        "and not (measured_again and scale)",
    ),
    "cuda_on_cpu/norm_tests": (120, ""),
    "cuda_on_cpu/device_tests": (300, ""),
}


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extension, linked with the stand-in for CUDA."""
    return stand_in_module.link(stand_in_module.objects(), tmp_path_factory.mktemp("stand_in"))


def run_posed(module: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As ``stand_in_module.run_posed``, which starts an interpreter for each of many modules."""
    folders = os.pathsep.join(map(str, (building.HERE, building.ROOT / "tests" / "tools")))
    environment = {**os.environ, "FUSEDOPTIM_STAND_IN": str(module), "PYTHONPATH": folders}
    command = ["-q", "-p", "posed", "-p", "no:cacheprovider", *arguments]
    code = f"import os, sys, pytest; os.chdir({str(building.ROOT)!r}); sys.exit(pytest.main({command}))"
    return fresh.run(code, environment, 3600, fresh.OPTIMIZERS)


@pytest.mark.parametrize("name", POSED)
def test_on_a_device(name: str, module: Path) -> None:
    least, chosen = POSED[name]
    done = run_posed(module, f"tests/{name}.py", *(["-k", chosen] if chosen else []))
    assert done.returncode == 0, done.stdout[-6000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= least, done.stdout[-2000:]
    if name == "bits/test_bits":  # each of the others launches some
        others = sorted(machine_code.OTHERS)
        assert f"kernels never launched: {len(others)}\n" in done.stdout, done.stdout[-2000:]
        missed = re.findall(r"^ +(_ZN\w+)$", done.stdout, re.MULTILINE)
        assert sorted(map(str, map(machine_code.other_of, missed))) == others, "all but those of no rule"
