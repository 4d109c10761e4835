"""What follows the backward pass in the loops of ``python -m benchmarks loop``: correct, and timed as it says."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import need_kernels

import fusedoptim
from benchmarks.loop import run as train_loop
from benchmarks.publish import charts, sections
from benchmarks.shared import options, tails, timed_training, training, variants, workloads
from benchmarks.shared.files import RESULTS

pytestmark = need_kernels
FULL = "clip+amp+ema"
OURS = [variants.OURS_CALLS, variants.OURS]


def judge(tail: str) -> dict[str, Any]:
    """The verdict on each variant; gradients need clipping at first and not in the end."""
    workload = workloads.WORKLOADS["tiny-mlp"]
    check = training.TrainingCheck(workload, "adam", torch.device("cpu"), 32, tail)
    verdicts: dict[str, Any] = check.judge({name: check.train(name) for name in (*variants.YARDSTICKS, *OURS)})
    return verdicts


@pytest.mark.parametrize("tail", tails.TAILS)
def test_every_variant_trains_correctly(tail: str) -> None:
    verdicts = judge(tail).values()
    assert all(verdict.correct for verdict in verdicts)
    assert all(verdict.rounding.overall < 1e-5 for verdict in verdicts)  # float64 has seen the same gradients


class TwiceTheLoss(torch.amp.GradScaler):
    """Scales by more than it divides by."""

    def scale(self, outputs: Any) -> Any:
        return super().scale(outputs) * 2


@pytest.mark.parametrize(
    ("tail", "settings", "wrong"),
    [
        ("clip", {"max_grad_norm": 0.2}, [variants.OURS]),
        (FULL, {"max_grad_norm": None}, [variants.OURS]),
        (FULL, {"ema_decay": 0.99}, [variants.OURS]),
        ("clip", "clip_grad_norm_", [variants.OURS_CALLS]),
        (FULL, "clip_grad_norm_", [variants.OURS_CALLS]),
        (FULL, "GradScaler", OURS),
    ],
)
def test_another_tail_is_wrong(tail: str, settings: Any, wrong: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    adam = fusedoptim.Adam
    if settings == "clip_grad_norm_":
        monkeypatch.setattr(fusedoptim, settings, lambda *_: None)
    elif settings == "GradScaler":
        monkeypatch.setattr(fusedoptim, settings, TwiceTheLoss)
    else:

        def changed(*args: Any, **given: Any) -> Any:
            return adam(*args, **given | {name: value for name, value in settings.items() if name in given})

        monkeypatch.setattr(fusedoptim, "Adam", changed)
    assert [name for name, verdict in judge(tail).items() if not verdict.correct] == wrong


class CountingClock:
    """Each reading is one microsecond after the last."""

    def __init__(self) -> None:
        self.mark = itertools.count().__next__

    def between(self, marks: list[int]) -> list[float]:
        return [float(b - a) for a, b in itertools.pairwise(marks)]


@pytest.mark.parametrize("tail", tails.TAILS)
@pytest.mark.parametrize("name", variants.VARIANTS)
def test_every_call_is_in_its_phase(name: str, tail: str) -> None:
    """A phase has a microsecond for each of its calls; ours has none where the step does it all."""
    workload = workloads.WORKLOADS["tiny-mlp"]
    task = workload.task(torch.device("cpu"))
    trainer = training.Trainer(task, variants.VARIANTS[name], "adam", 1e-3, "separate", tail)
    timings = timed_training.Timings(tail)
    timings.add(trainer, True, 2, CountingClock())
    expected = {phase: [1.0] for phase in training.PHASES}
    within = name == variants.OURS
    around = {"clip": 0 if within else 1, "average": 0 if within else 1, "scaler": 1 if within else 2}
    expected |= {phase: [float(around[phase])] for phase in tails.phases_of(tail) if phase in around}
    assert timings.phases == expected
    assert list(timings.phases) == list(tails.phases_of(tail))
    assert timings.around == [sum(times[0] for times in expected.values()) - 3]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], [("sgd", "plain"), *(("adam", tail) for tail in tails.TAILS), ("adamw", "plain")]),
        (["--tail", FULL, "plain"], [(rule, tail) for rule in variants.RULES for tail in ("plain", FULL)]),
    ],
)
def test_which_loops_have_which_tails(arguments: list[str], expected: list[tuple[str, str]]) -> None:
    parser = options.Parser("", rounds=(5, 2))
    train_loop.add_options(parser)
    parser.set_defaults(workload=["tiny-mlp"], optimizer=None)
    cases = train_loop.make_cases(parser.parse(arguments))
    assert [(case.rule, case.tail) for case in cases] == expected
    for case in cases:
        assert (variants.OURS_CALLS in case.timings) == (case.tail != "plain")


def test_results_table_and_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = ["--workload", "tiny-mlp", "--rounds", "1", "--iterations", "2", "--output", str(tmp_path)]
    assert train_loop.main([*short, "--optimizer", "sgd", "--tail", "plain", FULL]) == 0
    record = json.loads((tmp_path / "train_loop.json").read_text())
    assert [result["tail"] for result in record["results"]] == ["plain", FULL]
    charts.loops("sgd", record, tmp_path / "train_loop-sgd.png", "a note")
    assert b"a note" in (tmp_path / "train_loop-sgd.png").read_bytes()
    steps = json.loads((RESULTS / "compare_step.json").read_text())
    monkeypatch.setattr(sections, "RULE", "sgd")
    text = "\n".join(sections.figures(record, steps))
    assert "| fusedoptim | fusedoptim-calls | torch-default | torch-fused |\n" in text
    assert "| tiny-mlp, SGD | " in text
    assert f"| tiny-mlp, SGD, {FULL} | " in text
