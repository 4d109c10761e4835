"""What ``python -m benchmarks in-backward`` compares, and that it notices a step that was not taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fusedoptim
from benchmarks.publish import sections
from benchmarks.step import in_backward

NETWORK = in_backward.Network(layers=3, width=8, repeats=1)
ALL, LARGEST = 3 * 4 * (8 * 8 + 8), 4 * 8 * 8  # bytes


@pytest.mark.parametrize("way", in_backward.WAYS)
@pytest.mark.parametrize("name", in_backward.COMPARED)
def test_every_way_leaves_the_same(name: str, way: str) -> None:
    held = ALL if way == in_backward.AFTER else LARGEST
    assert in_backward.check(NETWORK, name, way) == {"correct": True, "held": held}


def test_missing_steps_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_backward, "_stepping", lambda optimizers, drops: in_backward._drop)
    assert not in_backward.check(NETWORK, in_backward.OURS, in_backward.HOOKS)["correct"]


def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusedoptim, "keep_freed_memory", lambda: True)  # it cannot be undone
    monkeypatch.setattr(in_backward, "NETWORKS", {"6 tensors": NETWORK})
    arguments = ("--rounds", "2", "--output", str(tmp_path))
    assert in_backward.main(list(arguments)) == 0
    text = "\n".join(sections.tables_of("in-backward", json.loads((tmp_path / "in_backward.json").read_text())))
    assert "| 6 tensors, µs per iteration (times ours) | after backward | hooks | " in text
    assert all(f"\n| {name} | " in text for name in (*in_backward.COMPARED, in_backward.DROPPED))
