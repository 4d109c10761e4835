"""What pytest-benchmark records of the machine."""

from typing import Any

from benchmarks.shared import measure


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Adds what our figures depend on and leaves out the name of the host."""
    machine_info.pop("node", None)
    machine_info["fusedoptim"] = measure.machine_info()
