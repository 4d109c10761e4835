"""What ``benchmarks/kernel_costs.py`` makes of its times, and that it times the kernels that it names."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from fusedoptim import native

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("rich", reason="the benchmarks need it")
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    kernel_costs = importlib.import_module("kernel_costs")
finally:
    sys.path.remove(str(ROOT / "benchmarks"))
pytestmark = pytest.mark.usefixtures("kernels_only")


def test_slopes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of steps that cost 3 us and 0.25 ns an element, or four times that under one instruction set."""
    sets = ["baseline", native.build_info()["instruction_sets_supported"][0]]
    before = native.build_info()["instruction_set"]
    factors = dict(zip(sets, (4, 1), strict=False))  # where there is but one, its factor is 1

    def time_call(elements: int, clock: object, repeats: int) -> float:
        return 3 + 0.25e-3 * factors[native.build_info()["instruction_set"]] * elements

    monkeypatch.setattr(kernel_costs, "prepare", lambda rule, dtype, elements: elements)
    monkeypatch.setattr(kernel_costs, "time_call", time_call)
    measured = kernel_costs.measure(sets, rounds=3)
    assert native.build_info()["instruction_set"] == before
    for (_, _, name), figures in measured.items():
        assert figures == pytest.approx([0.25 * factors[name]] * 3)


def test_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- kernel costs: begin -->\n<!-- kernel costs: end -->\nafter\n")
    kernel_costs.main(["--rounds", "1", "--output", str(tmp_path), "--into", str(page)])
    text = page.read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert all(f"| {label}, " in text for label in kernel_costs.LABELS.values())
