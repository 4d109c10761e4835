"""What ``python -m benchmarks memory`` measures with: its trainings, its ways, and what it calls correct."""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.memory import models, run, worker


def test_a_bare_model_has_the_gradient_of_its_loss() -> None:
    model = models.Bare([(3, 2), (4,)])
    model(torch.zeros(1)).backward()
    for p in model.weights:
        assert torch.equal(p.grad, torch.full_like(p, p.detach().flatten()[0].item()))  # 2 / 2 times the element
        assert p.grad.is_contiguous()


def outcome(**changes: Any) -> dict[str, Any]:
    same = {"kept": False, "losses": [1.0, 0.5], "checksum": 7, "iteration": 4.0, "faults": 2.0, "peak_mib": 1.0}
    return {**same, **changes}


@pytest.mark.parametrize("change", [{"losses": [1.0, 0.6]}, {"checksum": 8}])
def test_another_result_in_any_round_is_wrong(change: dict[str, Any]) -> None:
    first = [outcome(), outcome(iteration=8.0)]
    result = run.way_result([outcome(iteration=2.0), outcome(iteration=4.0)], first)
    assert result["correct"]
    assert result["ratio"]["median"] == 0.5
    assert not run.way_result([outcome(), outcome(**change)], first)["correct"]


@pytest.mark.parametrize("name", ["set_to_none=True", "set_to_none=False", "to_zero"])
def test_ways_clear_gradients_as_they_say_and_train_alike(name: str) -> None:
    trainer = worker.make_trainer("digits-cnn", run.WAYS[name].zero_grad)
    assert trainer.run(3) == worker.make_trainer("digits-cnn", "to_zero").run(3)
    grads = [p.grad for p in trainer.model.parameters()]
    assert all((grad == 0).all() if name == "to_zero" else grad.any() for grad in grads)
    trainer.begin()
    expected = {"set_to_none=True": lambda g: g is None}.get(name, lambda g: not g.any())
    assert all(expected(p.grad) for p in trainer.model.parameters())


def test_what_is_traced_between_the_marks() -> None:
    """Calls of all threads, each once though another thread has interrupted it."""
    before, after = ("brk(0) = 1", "getppid() = 1"), ("[pid  7] getppid() = 1", "brk(2) = 0")
    between = "[pid  7] mmap(0 <unfinished ...>", "[pid 19] brk(1) = 1", "[pid  7] <... mmap resumed>) = 2", "munmap(2)"
    found = worker.calls_between_marks("\n".join((*before, *between, *after)))
    assert found == {"mmap": 1, "brk": 1, "munmap": 1}


def test_a_process_for_each_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "WAYS", {name: run.WAYS[name] for name in (run.BASELINE, "keep_freed_memory")})
    assert run.main(["--quick", "--training", "wide-mlp", "--output", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "pages.json").read_text())
    ways = record["results"]["wide-mlp"]
    assert all(way["correct"] and way["iteration"]["median"] > 0 for way in ways.values())
    if platform.libc_ver()[0] == "glibc":
        assert ways["keep_freed_memory"]["kept"]
        assert ways["keep_freed_memory"]["faults"] < ways[run.BASELINE]["faults"] / 2
        if shutil.which("strace"):
            mapped = [record["calls"]["wide-mlp"][name]["mmap"] for name in (run.BASELINE, run.KEEP)]
            assert mapped[0] >= 2 > mapped[1], "the gradients of the two large layers"
