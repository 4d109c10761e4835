"""The CUDA kernels, compiled for the host, do what the CPU kernels do, and the sanitizers find nothing."""

from __future__ import annotations

import building
import pytest

WHY_NOT = building.why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

# How threads take turns, and how what is launched is stored; "" for all ways. A kernel that needs an order shows it in
# these: they are of one source, and of its templates the loads and stores alone differ.
ASCENDING, DESCENDING, SHUFFLED = "0", "1", "2"
ORDERS = {
    "address": [(ASCENDING, ""), (DESCENDING, "bf16"), (SHUFFLED, "f32")],
    "thread": [(ASCENDING, ""), (DESCENDING, "f32"), (SHUFFLED, "mixed")],
}


@pytest.mark.parametrize(
    ("sanitizer", "order", "storage"), [(name, *each) for name, orders in ORDERS.items() for each in orders]
)
def test_kernels_do_what_the_cpu_driver_does(sanitizer: str, order: str, storage: str) -> None:
    """Watched by a sanitizer."""
    chosen = ("--storage", storage) if storage else ()
    done = building.run_source_level(building.source_level(sanitizer), sanitizer, "--seed", order, *chosen)
    assert done.returncode == 0, done.stdout[:6000]
    assert "all correct" in done.stdout
