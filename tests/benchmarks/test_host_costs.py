"""What ``python -m benchmarks host-costs`` makes of its times: slopes, fixed parts and differences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.publish import sections
from benchmarks.step import host_costs


def test_slopes_and_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of calls that cost 2 us and, in the order of CALLS, 10, 20, ... ns a tensor."""
    slopes = {name: 10 * (k + 1) for k, name in enumerate(host_costs.CALLS)}
    monkeypatch.setattr(host_costs, "CALLS", {name: lambda n, s=s: 2 + n * s / 1e3 for name, s in slopes.items()})
    monkeypatch.setattr(host_costs, "time_one", lambda made: made)
    measured = host_costs.measure(rounds=3)
    for name, slope in slopes.items():
        assert measured[name]["tensor"] == pytest.approx([slope] * 3)
        assert measured[name]["call"] == pytest.approx([2000] * 3)
        assert measured[name]["all"] == pytest.approx([slope + 2000 / host_costs.MANY] * 3)
    for part, (what, more, less) in zip(host_costs.parts_of(measured), host_costs.PARTS, strict=True):
        assert part["part"] == what
        assert part["ns"]["median"] == pytest.approx(slopes[more] - (slopes[less] if less else 0))


def test_what_is_cleared_is_there_before() -> None:
    clear, give = host_costs.clearing(kept=True)(3)
    params = clear.__self__.param_groups[0]["params"]
    for _ in range(2):
        give()
        assert all(p.grad is not None for p in params)
        clear()
        assert all(p.grad is None for p in params)


def test_page(tmp_path: Path) -> None:
    arguments = ("--rounds", "2", "--output", str(tmp_path))
    assert host_costs.main(list(arguments)) == 0
    text = "\n".join(sections.host_costs(json.loads((tmp_path / "host_costs.json").read_text())))
    assert all(f"| {what} |" in text for what, _, _ in host_costs.PARTS)
