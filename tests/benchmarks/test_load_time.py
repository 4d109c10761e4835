"""What ``benchmarks/load_time.py`` keeps, and that a state which was loaded wrong is marked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fusedoptim
from benchmarks.step import load_time


@pytest.mark.parametrize("wrong", [None, "exp_avg", "step"])
def test_what_is_kept(wrong: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = fusedoptim.Adam.load_state_dict

    def load_wrong(self: Any, state_dict: Any) -> None:
        load(self, state_dict)
        entry = self.state[self.param_groups[0]["params"][-1]]
        if wrong is not None:
            entry[wrong] = torch.ones_like(entry[wrong]) * 3

    monkeypatch.setattr(fusedoptim.Adam, "load_state_dict", load_wrong)
    monkeypatch.setattr(load_time, "SIZES", [(3, 5)])
    assert load_time.main(["--rounds", "2", "--output", str(tmp_path)]) == (0 if wrong is None else 1)
    (result,) = json.loads((tmp_path / "load_time.json").read_text())["results"]
    assert result["correct"] is (wrong is None)
    assert result["ratio"]["median"] > 0
