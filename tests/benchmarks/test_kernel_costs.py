"""What ``python -m benchmarks kernel-costs`` makes of its times, and that it times the kernels that it names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fusedoptim
from benchmarks.publish import sections
from benchmarks.shared import variants
from benchmarks.step import kernel_costs
from fusedoptim import native

pytestmark = pytest.mark.usefixtures("kernels_only")


def test_slopes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of steps that cost 3 us and 0.25 ns an element, or four times that under one instruction set."""
    sets = ["baseline", native.build_info()["instruction_sets_supported"][0]]
    before = native.build_info()["instruction_set"]
    factors = dict(zip(sets, (4, 1), strict=False))  # where there is but one, its factor is 1

    def time_warm(made: tuple[str, int]) -> float:
        dtype, size = made
        elements = size / kernel_costs.DTYPES[dtype].itemsize
        return 3 + 0.25e-3 * factors[native.build_info()["instruction_set"]] * elements

    monkeypatch.setattr(kernel_costs, "prepare", lambda rule, dtype, size: (dtype, size))
    monkeypatch.setattr(kernel_costs, "time_warm", time_warm)
    measured = kernel_costs.measure(sets, rounds=3)
    assert native.build_info()["instruction_set"] == before
    for (_, _, name), figures in measured.items():
        assert figures == pytest.approx([0.25 * factors[name]] * 3)


@pytest.mark.parametrize("rule", kernel_costs.LABELS)
@pytest.mark.parametrize("dtype", kernel_costs.DTYPES)
def test_what_is_timed(rule: str, dtype: str) -> None:
    """One step of the rule over so many bytes of the dtype."""
    step = kernel_costs.prepare(rule, dtype, 4096)
    optimizer = step.__self__
    (param,) = optimizer.param_groups[0]["params"]
    assert (param.dtype, param.nbytes) == (kernel_costs.DTYPES[dtype], 4096)
    kind = variants.ALL_RULES[rule]
    assert type(optimizer) is getattr(fusedoptim, kind.class_name)
    assert optimizer.state[param].keys() - {"step"} == set(kind.state)
    before = param.detach().clone()
    step()
    assert not torch.equal(param, before)


def test_page(tmp_path: Path) -> None:
    arguments = ("--rounds", "1", "--output", str(tmp_path))
    assert kernel_costs.main(list(arguments)) == 0
    text = "\n".join(sections.tables_of("kernel-costs", json.loads((tmp_path / "kernel_costs.json").read_text())))
    assert all(f"| {label}, " in text for label in kernel_costs.LABELS.values())
