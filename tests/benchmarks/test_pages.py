"""What ``python -m benchmarks memory`` measures with: counted page faults and system calls, huge pages, comparisons."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.memory import models, run, step, worker
from benchmarks.shared.training import PHASES

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


@linux
def test_page_faults_are_counted() -> None:
    clock = worker.FaultClock()
    marks = [clock.mark()]
    with mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for at in range(0, 1 << 20, mmap.PAGESIZE):
            memory[at] = 1
        marks += [clock.mark(), clock.mark()]
    times = clock.between(marks)
    written, nothing = clock.faults
    assert times[0] > times[1] >= 0
    assert written >= (1 << 20) // mmap.PAGESIZE
    assert nothing < 10


def test_calls_are_counted_between_the_marks_over_all_threads() -> None:
    log = """12 brk(NULL) = 0x1
12 getppid() = 7
12 munmap(0x7f, 4096) = 0
13 mmap(NULL, 4096, PROT_READ <unfinished ...>
12 brk(0x2) = 0x2
13 <... mmap resumed>) = 0x7f
13 mmap(NULL, 8192, PROT_READ) = 0x7f
12 getppid() = 7
12 munmap(0x7f, 4096) = 0
"""
    assert run.between_marks(log.splitlines()) == {"munmap": 1, "mmap": 2, "brk": 1}
    assert not run.between_marks(["1 brk(NULL) = 1", "1 getppid() = 7"])


@linux
def test_huge_pages_hold_copies_one_after_another() -> None:
    tensors = [torch.randn(shape) for shape in ((3,), (5, 7), (), (1000, 1000))]
    before = step.huge_bytes()
    copies = step.on_huge_pages(tensors)
    assert all(torch.equal(a, b) for a, b in zip(copies, tensors, strict=True))
    assert copies[0].data_ptr() % step.HUGE == 0
    assert [c.data_ptr() - copies[0].data_ptr() for c in copies] == [0, 64, 256, 320]
    thp = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if thp.exists() and "[never]" not in thp.read_text():
        assert step.huge_bytes() > before


def test_a_bare_model_has_the_gradient_of_its_loss() -> None:
    model = models.Bare([(3, 2), (4,)])
    model(torch.zeros(1)).backward()
    for p in model.weights:
        assert torch.equal(p.grad, torch.full_like(p, p.detach().flatten()[0].item()))  # 2 / 2 times the element
        assert p.grad.is_contiguous()


def outcome(**changes: Any) -> dict[str, Any]:
    phases = dict.fromkeys(PHASES, 1.0)
    same = {"kept": False, "losses": [1.0, 0.5], "checksum": 7, "phases": phases, "iteration": 4.0, "faults": phases}
    return {**same, "system": 0.0, "peak_mib": 1.0, **changes}


@pytest.mark.parametrize("change", [{"losses": [1.0, 0.6]}, {"checksum": 8}])
def test_another_result_in_any_round_is_wrong(change: dict[str, Any]) -> None:
    first = [outcome(), outcome(iteration=8.0)]
    result = run.way_result([outcome(iteration=2.0), outcome(iteration=4.0)], first)
    assert result["correct"]
    assert result["ratio"]["median"] == 0.5
    assert not run.way_result([outcome(), outcome(**change)], first)["correct"]


@pytest.mark.parametrize("name", ["set_to_none=True", "set_to_none=False", "to_zero"])
def test_ways_clear_gradients_as_they_say_and_train_alike(name: str) -> None:
    trainer = worker.make_trainer("digits-mlp", run.WAYS[name])
    losses = worker.losses_of(trainer, 3)
    assert losses == worker.losses_of(worker.make_trainer("digits-mlp", run.WAYS["to_zero"]), 3)
    grads = [p.grad for p in trainer.model.parameters()]
    assert all((grad == 0).all() if name == "to_zero" else grad.any() for grad in grads)
    trainer.begin()
    expected = {"set_to_none=True": lambda g: g is None}.get(name, lambda g: not g.any())
    assert all(expected(p.grad) for p in trainer.model.parameters())
