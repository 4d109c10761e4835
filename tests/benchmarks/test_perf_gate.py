"""``python -m benchmarks gate``: counts that rise, and what is said of them.

Slowdowns planted in Python are measured in each run of the gate itself, which fails if it does not notice them.
"""

from __future__ import annotations

import io
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gate import cases as gate_cases
from benchmarks.gate import counts as gate_counts
from benchmarks.gate import figures as gate_figures
from benchmarks.gate import run as perf_gate
from benchmarks.shared import report

NAME = "fast 400x64 adam avx2 step"
KEY = {"compiler": "gcc 12", "python": "3.11", "torch": "2.13.0", "libc": "glibc 2.36"}


# ---- counts -------------------------------------------------------------------------------------------------------
def figures(per_tensor: int = 1000, per_element: int = 4, key: dict[str, str] = KEY, **module: int) -> Any:
    counts = {}
    for model in gate_cases.LIMITS:
        shapes = gate_cases.shapes_of(model)
        total = 20_000 + per_tensor * len(shapes) + per_element * sum(map(prod, shapes))
        counts[f"fast {model} adam avx2 step"] = gate_counts.Count(total, module.get("own", 10_000))
    return gate_figures.Figures(key, counts, {})


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (figures(), None),
        (figures(per_tensor=1020), None),
        (
            figures(per_tensor=1100),
            f"{NAME}: instructions per call rose from 522,400 to 562,400 (+7.7%), allowed are +3%",
        ),
        (figures(per_element=5), "fast tutorial-mlp adam avx2 step: instructions per call rose from "),
        (figures(own=11_000), f"{NAME}: the module's own instructions rose from 10,000 to 11,000 (+10.0%)"),
        (replace(figures(), counts={}), f"{NAME}: was not counted"),
        # another Python: totals may differ, but not the module, and no tensor or element may cost far more
        (figures(per_tensor=1100, key={**KEY, "python": "3.14"}), None),
        (figures(own=11_000, key={**KEY, "python": "3.14"}), f"{NAME}: the module's own instructions rose"),
        (figures(own=11_000, key={**KEY, "compiler": "clang 19"}), None),
        (
            figures(per_tensor=1900, key={**KEY, "compiler": "clang 19"}),
            "fast adam avx2 step: instructions per tensor rose from 1,256 to 2,156 (+71.7%)",
        ),
        (
            figures(per_element=7, key={**KEY, "compiler": "clang 19"}),
            "fast adam avx2 step: instructions per element",
        ),
    ],
)
def test_what_is_said_of_a_count(now: Any, message: str | None) -> None:
    failures = list(gate_figures.judge_counts(figures(), now))
    assert failures == [] if message is None else any(failure.startswith(message) for failure in failures), failures


def test_a_dump_is_read() -> None:
    dump = """desc: Trigger: Client Request: fast 4x64 adam avx2 step
ob=(2) /lib/libpython3.11.so
fn=(1) a
16 100
+3 20
cfn=(2) b
cob=(3) /there/fusedoptim/_C.cpython-311.so
calls=1 50
16 4000
ob=(3)
fn=(2)
0 3000
* 900
ob=(4) /tmp/gate_client.so
0 7
totals: 4027
"""
    trigger, costs, total = gate_counts.read_dump(io.StringIO(dump))
    assert trigger == "Client Request: fast 4x64 adam avx2 step"
    assert sum(costs.values()) == total
    assert gate_counts.count_of(costs) == gate_counts.Count(4020 // 2, 3900 // 2)


# ---- the gate -----------------------------------------------------------------------------------------------------
def test_the_figures_are_of_all_that_is_counted(tmp_path: Path) -> None:
    kept = gate_figures.Figures.load()
    names = {case.name for case in gate_cases.cases(planted=False)}
    assert set(kept.counts) == {f"{path} {name}" for path in ("fast", "general") for name in names}
    kept.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == gate_figures.FIGURES.read_text()


def test_a_slowdown_that_goes_unnoticed_fails_the_gate() -> None:
    now, console = figures(), report.make_console()
    label = f"{NAME} {gate_cases.PLANTED}: something slow"
    slow, same = gate_counts.Count(600_000, 10_000), now.counts[NAME]
    assert list(perf_gate.planted_unnoticed(now, {label: slow}, console)) == []
    assert list(perf_gate.planted_unnoticed(now, {label: same}, console)) == ["planted and not noticed: something slow"]


def test_without_valgrind_the_gate_fails_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(perf_gate, "why_not", lambda: "valgrind is not installed")
    assert perf_gate.main([]) == 1
    said = capsys.readouterr().out
    assert "valgrind is not installed" in said
    assert "--without-counts" in said
