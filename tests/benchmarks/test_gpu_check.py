"""``python -m benchmarks gpu`` as far as it needs no GPU: the CPU in its place, planted differences, canned figures."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from on_device import bits as gpu_bits
from on_device import checks as gpu_checks
from on_device import device as gpu_device

from benchmarks.gpu import build as gpu_build
from benchmarks.gpu import parts as gpu_parts
from benchmarks.gpu import report as gpu_report
from benchmarks.gpu import run as gpu_check
from benchmarks.gpu import time as gpu_time

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = gpu_device.Device("cpu")
SETTINGS = gpu_bits.Settings(CPU, (0, 1, 17, 257), quick=True)
ALL_CHECKS = {**gpu_checks.CHECKS, **gpu_checks.SHORT_CHECKS}


def run_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*gpu_check.COMMAND, *arguments],
        cwd=gpu_check.ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


# ---- bits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL_CHECKS)
def test_each_check_passes_on_equal_devices(name: str) -> None:
    found = gpu_bits.run(ALL_CHECKS[name](SETTINGS))
    assert found["passed"], found["lines"]
    assert found["compared"] > 0


def spoil(p: Any) -> None:
    if p.dim() and p.numel():
        p.detach().view(-1)[-1:].add_(1) if p.is_contiguous() else p.detach()[(-1,) * p.dim()].add_(1)


@pytest.mark.parametrize("name", [name for name in ALL_CHECKS if name not in ("zero_grad", "nothing waits")])
def test_each_check_notices_a_wrong_element(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last element of a parameter is off by one after every second step: those of the device and not of the CPU."""
    calls = {"steps": 0}
    original = gpu_bits.FusedStep._update

    def wrong(self: Any, *args: Any) -> Any:
        result = original(self, *args)
        calls["steps"] += 1
        if calls["steps"] % 2:
            for p in gpu_bits.params_of(self)[-1:]:
                spoil(p)
        return result

    monkeypatch.setattr(gpu_bits.FusedStep, "_update", wrong)
    few = gpu_bits.cases.for_drivers(gpu_bits.cases.one_per_class())
    for table in ("everything", "one_per_class"):
        monkeypatch.setattr(gpu_bits.cases, table, lambda: few)
    found = gpu_bits.run(ALL_CHECKS[name](SETTINGS))
    assert not found["passed"]
    assert found["lines"]


def test_zero_grad_that_leaves_an_element_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = gpu_bits.FusedStep._reset_gradients
    calls = {"all": 0}

    def wrong(self: Any, set_to_none: bool) -> None:
        original(self, set_to_none)
        calls["all"] += 1
        if calls["all"] % 2:
            gpu_bits.params_of(self)[-1].grad[-1] = 1

    monkeypatch.setattr(gpu_bits.FusedStep, "_reset_gradients", wrong)
    assert not gpu_bits.run(gpu_checks.CHECKS["zero_grad"](SETTINGS))["passed"]


def test_a_host_that_waits_is_noticed() -> None:
    class Waiting(gpu_device.Device):
        def busy(self) -> Any:
            return nullcontext(lambda: False)

    found = gpu_bits.run(gpu_checks.CHECKS["nothing waits"](gpu_bits.Settings(Waiting("cpu"), (5,), quick=True)))
    assert not found["passed"]
    assert "waited for the device" in found["lines"][0]


def test_a_step_that_is_left_to_torch_is_an_error() -> None:
    def foreign(settings: Any) -> Iterator[Any]:
        p = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
        p.grad = torch.ones_like(p)
        gpu_bits.cases.CASES[0].make([p]).step()
        yield gpu_bits.Outcome("", [])

    with pytest.raises(AssertionError, match="left to torch"):
        gpu_bits.run(foreign(SETTINGS))


def test_comparing_nothing_is_no_pass() -> None:
    assert gpu_bits.run([])["lines"] == ["nothing was compared"]
    assert not gpu_bits.run([])["passed"]


# ---- parts, their time, and what becomes of one that dies -----------------------------------------------------------


def test_units_run_in_order_and_failures_do_not_stop_them(tmp_path: Path) -> None:
    def explode() -> dict[str, Any]:
        raise ValueError("no\nway")

    path, ran = tmp_path / "part.json", []
    calls = {
        "good": lambda: ran.append("good") or {"passed": True, "figure": 1},
        "bad": explode,
        "wrong": lambda: {"passed": False, "why": "differs"},
        "absent": lambda: {"passed": True, "state": "skipped", "why": "no tool"},
    }
    assert gpu_parts.run_units(calls, path, time.time() + 60) == 0
    units = json.loads(path.read_text())
    assert {name: unit["state"] for name, unit in units.items()} == {
        "good": "passed", "bad": "failed", "wrong": "failed", "absent": "skipped",
    }  # fmt: skip
    assert units["bad"]["why"] == "ValueError: no way"
    assert gpu_parts.run_units(calls, path, time.time() + 60) == 0
    assert ran == ["good"], "what the record has is not run again"


def test_no_unit_begins_after_its_time(tmp_path: Path) -> None:
    path = tmp_path / "part.json"
    gpu_parts.run_units({"late": lambda: {"passed": True}}, path, time.time() - 1)
    assert json.loads(path.read_text()) == {"late": {"state": "skipped", "why": "no time left"}}


def test_a_broken_device_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_parts, "is_broken", lambda: True)
    calls = {name: lambda: {"passed": True} for name in "ab"}
    assert gpu_parts.run_units(calls, tmp_path / "part.json", time.time() + 60) == gpu_parts.BROKEN
    assert list(json.loads((tmp_path / "part.json").read_text())) == ["a"]


PROCESS = """
import json, pathlib, sys, time
path = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
units = json.loads(path.read_text()) if path.exists() else {}
for name in "abc":
    if name in units:
        continue
    units[name] = {"state": "running"}
    path.write_text(json.dumps(units))
    if name == "b":
        SYMPTOM
    units[name] = {"state": "passed"}
    path.write_text(json.dumps(units))
"""


@pytest.mark.parametrize(
    ("symptom", "seconds", "states"),
    [
        ("pass", 60, ["passed", "passed", "passed"]),
        ("import os; os.abort()", 60, ["passed", "failed", "passed"]),
        ("sys.exit(3)", 60, ["passed", "failed", "passed"]),
        ("time.sleep(60)", 1, ["passed", "failed"]),
    ],
)
def test_a_part_outlives_its_processes(symptom: str, seconds: float, states: list[str], tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setitem(gpu_parts.PARTS, "bits", gpu_parts.Part(1, 0))
    command = [sys.executable, "-c", PROCESS.replace("SYMPTOM", symptom)]
    found = gpu_parts.run_part("bits", command, tmp_path / "gpu.json", time.time() + seconds)
    assert [unit["state"] for unit in found["units"].values()] == states
    assert found["state"] == ("failed" if "failed" in states else "passed")
    assert not list(tmp_path.iterdir())


def test_a_part_that_never_begins_its_units_fails(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit(1)"]
    found = gpu_parts.run_part("bits", command, tmp_path / "gpu.json", time.time() + 60)
    assert (found["state"], found["why"]) == ("failed", "its process ended with status 1")


def test_a_part_without_time_is_left_out_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = gpu_parts.run_part("time", ["false"], tmp_path / "gpu.json", time.time() + 5)
    assert found["state"] == "skipped"
    assert capsys.readouterr().out.startswith("time: left out, ")


# ---- build and sanitizers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architectures", "capability", "how"),
    [
        (["9.0"], (9, 0), "machine code"),
        (["8.0"], (8, 6), "machine code"),
        (["8.6"], (8, 0), None),
        (["8.0"], (9, 0), None),
        (["8.0", "8.0+PTX"], (9, 0), "PTX"),
        (["9.0+PTX"], (8, 0), None),
        (["9.0a"], (9, 0), "machine code"),
        (["10.0a"], (10, 3), None),
        (["12.0"], (12, 1), "machine code"),
        ([], (9, 0), None),
    ],
)
def test_what_a_build_serves(architectures: list[str], capability: tuple[int, int], how: str | None) -> None:
    assert gpu_build.serves(architectures, capability) == how


class FakePython:
    """Stands for the runs of Python: answers the question for the build, and lets builds fail or succeed."""

    def __init__(self, has: list[str], gets: list[str] | None = None, output: str = "") -> None:
        self.has, self.gets, self.output = has, gets, output
        self.commands: list[tuple[list[str], dict[str, str]]] = []

    def __call__(self, command: Any, environment: Any) -> subprocess.CompletedProcess[str]:
        if command[0] == "-c":
            told = json.dumps({"cuda_architectures": self.has, "error": None})
            return subprocess.CompletedProcess(command, 0, f"a warning\n{told}\n")
        self.commands.append((list(command), dict(environment)))
        if self.gets is None:
            return subprocess.CompletedProcess(command, 1, self.output)
        self.has = self.gets
        return subprocess.CompletedProcess(command, 0, "")


def test_nothing_is_built_where_there_are_kernels() -> None:
    python = FakePython(["9.0"])
    assert gpu_build.build((9, 0), python)["passed"]
    assert not python.commands


@pytest.fixture
def nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_build, "find_nvcc", lambda: (Path("/cuda/bin/nvcc"), "13.0.88"))
    monkeypatch.setattr(gpu_build, "lacking", list)


@pytest.mark.usefixtures("nvcc")
def test_built_for_the_gpu_at_hand() -> None:
    python = FakePython(["8.0"], gets=["9.0"])
    found = gpu_build.build((9, 0), python)
    assert (found["passed"], found["built"], found["nvcc"]) == (True, True, "13.0.88")
    ((_, environment),) = python.commands
    assert environment == {"FUSEDOPTIM_CUDA": "1", "FUSEDOPTIM_NATIVE": "1", "TORCH_CUDA_ARCH_LIST": "9.0"}


@pytest.mark.usefixtures("nvcc")
@pytest.mark.parametrize(("output", "tries"), [("externally managed", 2), ("fusedoptim: cannot be built", 1)])
def test_without_pip_where_pip_is_the_cause(output: str, tries: int) -> None:
    python = FakePython([], None, output)
    found = gpu_build.build((9, 0), python)
    assert not found["passed"]
    assert output in found["why"]
    assert [command[0] for command, _ in python.commands] == ["-m", "setup.py"][:tries]


def test_no_nvcc_is_a_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_build, "find_nvcc", lambda: (None, "none on PATH"))
    assert gpu_build.build((9, 0), FakePython([]))["why"].startswith("no nvcc: none on PATH; no kernels")
    found = gpu_build.build((9, 0), FakePython(["8.0+PTX"]))
    assert (found["passed"], found["how"]) == (True, "PTX")


MEMCHECK = "========= COMPUTE-SANITIZER\nshort run: correct, 5 comparisons\n========= ERROR SUMMARY: {} errors\n"
RACECHECK = MEMCHECK.replace("ERROR", "RACECHECK").replace("errors", "hazards displayed")


@pytest.mark.parametrize(
    ("tool", "status", "output", "passed"),
    [
        ("memcheck", 0, MEMCHECK.format(0), True),
        ("memcheck", 0, MEMCHECK.format(10), False),
        ("memcheck", 1, MEMCHECK.format(0), False),
        ("memcheck", 0, "short run: correct, 5 comparisons\n", False),
        ("memcheck", 0, MEMCHECK.format(0).replace("correct", "wrong"), False),
        ("racecheck", 0, RACECHECK.format(0), True),
        ("racecheck", 0, RACECHECK.format(3), False),
        ("racecheck", 0, MEMCHECK.format(0), False),
    ],
)
def test_verdict_of_a_sanitizer(tool: str, status: int, output: str, passed: bool) -> None:
    found = gpu_check.judged(tool, status, output)
    assert found["passed"] is passed
    assert found["why"]


def test_a_missing_or_endless_sanitizer_is_left_out_with_a_line(tmp_path: Path, monkeypatch: Any) -> None:
    args = gpu_check.parse(["--rehearse"])
    monkeypatch.setattr(gpu_check, "find_sanitizer", lambda: None)
    assert "no compute-sanitizer" in gpu_check.sanitize("memcheck", args)["why"]
    tool = tmp_path / "compute-sanitizer"
    tool.write_text("#!/bin/sh\nsleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setattr(gpu_check, "find_sanitizer", lambda: tool)
    monkeypatch.setattr(gpu_check, "run_limited", lambda *args: gpu_parts.run_limited(args[0], 0.2, *args[2:]))
    found = gpu_check.sanitize("racecheck", args)
    assert found["state"] == "skipped"
    assert "had not finished" in found["why"]


# ---- figures --------------------------------------------------------------------------------------------------------


def test_launches_are_read_from_a_trace() -> None:
    def event(cat: str, name: str, dur: float = 2.0, ph: str = "X") -> dict[str, Any]:
        return {"ph": ph, "cat": cat, "name": name, "dur": dur, "ts": 1}

    events = [
        event("cpu_op", "aten::mul"), event("cuda_runtime", "cudaLaunchKernel"), event("kernel", "step<Adam>", 1000.0),
        event("kernel", "fill", 3.0), event("kernel", "fill", 4.0), event("gpu_memcpy", "Memcpy HtoD", 5.0),
        event("gpu_user_annotation", "Optimizer.step#Adam.step", 1007.0), event("ac2g", "ac2g", ph="s"),
        {"ph": "M", "name": "process_name"},
    ]  # fmt: skip
    assert gpu_time.Launches.of({"traceEvents": events}) == gpu_time.Launches(kernels=3, device_us=1012.0)
    assert gpu_time.Launches.of({"traceEvents": events[:2]}) is None, "not zero: the profiler saw nothing"


def spread(median: float) -> dict[str, float]:
    return {"median": median, "low": median, "high": median}


def canned(share: float, host: float, kernels: int | None, fused: float) -> dict[str, Any]:
    """A record with one step and one loop."""
    seen = None if kernels is None else {"kernels": kernels, "device_us": 1000.0}
    ours = {
        "time": spread(1100.0), "host": spread(host), "gb_per_s": 3100.0, "copy_share": spread(share),
        "ratio": spread(1.0), "launches": seen, "correct": True,
    }  # fmt: skip
    loop = {"phases": {"step": spread(9.0)}, "loop": spread(90.0), "loop_ratio": spread(1.0), "correct": True}
    units = {
        "step gpt2 adam": {
            "model": "gpt2", "tensors": 148, "bytes": 3_484_314_624, "state": "passed",
            "copy": {"time": spread(700.0), "gb_per_s": 3300.0},
            "variants": {"torch-fused": {**ours, "ratio": spread(fused)}, "fusedoptim": ours},
        },
        "loop tutorial adam": {
            "state": "passed",
            "variants": {"torch-fused": {**loop, "loop_ratio": spread(fused)}, "fusedoptim": loop},
        },
        "step 400x64 adam": {"state": "skipped", "why": "no time left"},
    }  # fmt: skip
    settings = {"quick": False, "rehearsal": False, "minutes": 8}
    return {"settings": settings, "parts": {"time": {"state": "passed", "units": units}}}


@pytest.mark.parametrize(
    ("record", "reached"),
    [
        (canned(0.93, 41.0, 1, 1.2), [True] * 5),
        (canned(0.92, 60.0, 1, 1.0), [True] * 5),
        (canned(0.919, 60.1, 2, 0.99), [False] * 5),
        (canned(0.93, 41.0, None, 1.2), [True, True, None, True, True]),
    ],
)
def test_targets(record: dict[str, Any], reached: list[bool | None]) -> None:
    found = gpu_report.targets(record)
    assert [target.reached for target in found] == reached
    words = printed(record)
    assert ("missed" in words, "not measured" in words) == (False in reached, None in reached)


def printed(record: dict[str, Any]) -> str:
    console = gpu_report.Console(file=io.StringIO(), width=200)
    gpu_report.show(record, console)
    text: str = console.file.getvalue()
    return text


def test_targets_of_which_nothing_was_measured_are_named() -> None:
    record = {"settings": {"rehearsal": False}, "parts": {"time": {"state": "failed", "why": "no", "units": {}}}}
    assert [target.reached for target in gpu_report.targets(record)] == [None] * 4
    assert gpu_report.lines(record, "failed") == ["time: no"]


def test_tables_name_failures_and_what_was_left_out() -> None:
    record = canned(0.93, 41.0, 1, 1.2)
    record["parts"]["bits"] = {
        "state": "failed",
        "units": {"graphs": {"state": "failed", "why": "step 1, parameter [3] differs", "compared": 7, "seconds": 1.0}},
    }
    record["parts"]["sanitize"] = {"state": "skipped", "why": "5 s left, and it needs 40", "units": {}}
    text = printed(record)
    assert "FAILED bits: graphs: step 1, parameter [3] differs" in text
    assert "left out: sanitize: 5 s left" in text
    assert "left out: time: step 400x64 adam: no time left" in text
    for word in ("of the copy", "training, µs: tutorial, adam", "1,000 in 1", "3,300"):
        assert word in text


def test_figures_of_a_step() -> None:
    """Bandwidth from the traffic of the rule, shares and ratios within rounds, beside correctness."""
    plan = gpu_time.rehearsal()
    for rule, moved in (("sgd", 20), ("adam", 28)):
        found = gpu_time.measure_step(plan, "gpt2", rule)
        assert found["bytes"] == moved * (7 * 9 + 65)
        assert found["passed"]
        ours = found["variants"]["fusedoptim"]
        assert plan.rounds % 2 == 1, "so that the median of the rates is that of the times"
        assert ours["gb_per_s"] * ours["time"]["median"] * 1e3 == pytest.approx(found["bytes"])
        assert ours["ratio"]["median"] == 1
        assert set(found["variants"]) == set(gpu_time.NAMES)
        assert all(figures["correct"] and figures["launches"] is None for figures in found["variants"].values())


def test_bandwidth_against_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step takes 10 µs and each copy 4: known figures come out."""
    plan = gpu_time.rehearsal()
    monkeypatch.setattr(gpu_time, "time_call", lambda call, *_: 4.0 if isinstance(call, gpu_time.Copy) else 10.0)
    monkeypatch.setattr(gpu_time, "host_time", lambda *_: 3.0)
    found = gpu_time.measure_step(plan, "gpt2", "adam")
    ours = found["variants"]["fusedoptim"]
    assert ours["gb_per_s"] == pytest.approx(28 * 128 / 10e-6 / 1e9)
    assert found["copy"]["gb_per_s"] == pytest.approx(2 * 2**16 / 4e-6 / 1e9)
    assert ours["copy_share"]["median"] == pytest.approx(ours["gb_per_s"] / found["copy"]["gb_per_s"])
    assert ours["host"]["median"] == 3


def test_the_order_of_measurements() -> None:
    names = [name for name, _ in gpu_time.units(gpu_time.rehearsal())]
    assert len(names) == len(set(names)) == len(gpu_time.STEPS) + len(gpu_time.LOOPS)
    assert names[0] == "step gpt2 adam", "on which most targets rest"


# ---- the command ----------------------------------------------------------------------------------------------------


def test_without_a_device_one_clear_line() -> None:
    done = run_command()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("gpu: no CUDA device: torch ")


def test_nothing_of_the_package_is_needed_before_it_is_built() -> None:
    code = "import sys; sys.modules['fusedoptim'] = None; import benchmarks.gpu.run"
    subprocess.run([sys.executable, "-c", code], cwd=gpu_check.ROOT, check=True)


def test_help_and_wrong_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        gpu_check.parse(["--help"])
    text = capsys.readouterr().out
    assert all(option in text for option in ("--output", "--quick", "--only", "--minutes", "--rehearse", "--short-run"))
    assert "--until" not in text
    with pytest.raises(SystemExit, match="2"):
        gpu_check.parse(["--minutes", "0"])
    assert gpu_check.parse([]).output == gpu_check.RESULT
    for unpublished in (["--rehearse"], ["--quick"]):
        assert gpu_check.parse(unpublished).output.is_relative_to(gpu_check.ROOT / "build")


TOOL = """#!/bin/sh
tool=$2
shift 2
echo "========= COMPUTE-SANITIZER"
[ $tool = racecheck ] || "$@"
echo "========= ERROR SUMMARY: 0 errors"
"""


BARE = """
import sys

class Bare:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *args):
        is_missing = name.partition(".")[0] in ("matplotlib", "pytest", "rich", "sklearn")
        return None if is_missing else self.finder.find_spec(name, *args)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Bare, sys.meta_path)
"""


def test_one_part_from_end_to_end(tmp_path: Path) -> None:
    """In processes of its own, with its record, tables and exit status, where what is hardly needed is missing.

    There is a sanitizer, whose racecheck does not say what it found.
    """
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text(TOOL)
    tool.chmod(0o755)
    (tool.parent / "sitecustomize.py").write_text(BARE)
    output = tmp_path / "results" / "gpu.json"
    paths = {"PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(tool.parent)}
    done = run_command("--rehearse", "--only", "sanitize", "--output", str(output), **paths)
    assert done.returncode == 1, done.stdout + done.stderr
    record = json.loads(output.read_text())
    assert list(record["parts"]) == ["sanitize"]
    states = {name: unit["state"] for name, unit in record["parts"]["sanitize"]["units"].items()}
    assert states == {"memcheck": "passed", "racecheck": "failed"}
    assert record["machine"]["torch"] == torch.__version__
    assert "not installed, and hardly needed: pytest, rich\n" in done.stdout
    assert "FAILED sanitize: racecheck: ERROR SUMMARY: 0 errors" in done.stdout
    assert [path.name for path in output.parent.iterdir()] == ["gpu.json"]


def test_the_calls_of_the_parts() -> None:
    args = gpu_check.parse(["--rehearse"])
    bits = gpu_check.bits_calls(args)
    assert list(bits) == list(gpu_checks.CHECKS)
    assert bits["huge parameter"]()["passed"]
    assert gpu_check.build_calls(args)["module"]()["passed"]
    assert len(gpu_check.time_calls(args)) == len(gpu_time.STEPS) + len(gpu_time.LOOPS)


def test_the_parts_share_the_time(tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Each may use what those before have left; a failed part stops none, and makes the exit status 1."""
    given = {}

    def noted(name: str, command: list[str], output: Path, until: float) -> dict[str, Any]:
        given[name] = until - time.time()
        unit = {"state": "failed" if name == "sanitize" else "passed", "why": "2 errors", "compared": 1}
        return {"state": unit["state"], "units": {"memcheck": unit}}

    monkeypatch.setattr(gpu_check, "run_part", noted)
    assert gpu_check.main(["--rehearse", "--minutes", "4", "--output", str(tmp_path / "gpu.json")]) == 1
    assert list(given) == ["build", "bits", "sanitize", "time"]
    assert list(given.values()) == sorted(given.values())
    assert 200 < given["time"] <= 240 - gpu_check.RESERVE_S
    assert "FAILED sanitize: memcheck: 2 errors" in capsys.readouterr().out
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["targets"][0]["reached"] is None
