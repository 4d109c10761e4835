"""The threads that share a step's work: programs that try them alone, and steps in forked children."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import assert_optimizers_match, in_child, make_params, set_grads

import fusedoptim
from fusedoptim import native

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("g++") or shutil.which("clang++")
SANITIZERS = {"plain": "", "threads": "-fsanitize=thread", "memory": "-fsanitize=address,undefined"}
SOURCES = {
    "stress": ("pool/worker", "pool/worker_pool", "pool/processors"),
    "sharing": ("pool/worker", "pool/worker_pool", "pool/processors", "pool/parallel_for", "run"),
}
CANCELLING = "job_.compare_exchange_strong(submitted, 0)"


def build(folder: Path, what: str, sanitizer: str = "", right: str = "", wrong: str = "") -> Path:
    """Compiles one of the programs with the sources of the product, with one piece of their text replaced."""
    sources, found = [ROOT / "tests" / "pool" / f"{what}.cpp"], 0
    for name in SOURCES[what]:
        text = (ROOT / "csrc" / "cpu" / f"{name}.cpp").read_text()
        found += bool(right) and text.count(right)
        sources.append(folder / Path(f"{name}.cpp").name)
        sources[-1].write_text(text.replace(right, wrong) if right else text)
    assert found == bool(right), f"{found} places have {right}"
    program = folder / what
    flags = ["-O1", "-g", "-std=c++17", "-frounding-math", "-pthread", f"-I{ROOT / 'csrc'}", *sanitizer.split()]
    subprocess.run([str(COMPILER), *flags, *map(str, sources), "-o", str(program)], check=True)
    return program


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    # It has its own sanitizer, and bears no other that these tests run under.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    arguments = list(map(str, command))
    return subprocess.run(arguments, capture_output=True, text=True, timeout=100, check=False, env=environment)


def stress(program: Path, forks: int) -> subprocess.CompletedProcess[str]:
    return run(program, "1000", str(forks))


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("kind", SANITIZERS)
def test_stress(tmp_path: Path, kind: str) -> None:
    # The sanitizer of threads does not follow those that a child starts.
    forks = 0 if kind == "threads" else 10
    result = stress(build(tmp_path, "stress", SANITIZERS[kind]), forks)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "all correct" in result.stdout


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (CANCELLING, "job_.store(0 * submitted)"),
        ("workers[member]->wait_for_end_of(job)", "workers[member]->wake()"),
        ("std::fesetenv(&job.environment);", ""),
    ],
    ids=["cancelled though taken", "not waited for", "environment not carried"],
)
def test_stress_notices_mistakes(tmp_path: Path, right: str, wrong: str) -> None:
    program = build(tmp_path, "stress", "", right, wrong)
    assert any(stress(program, 0).returncode != 0 for _ in range(20))  # it takes two threads to meet


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor has one thread")
@pytest.mark.parametrize("threads", ["-fopenmp", "-fno-openmp"], ids=["OpenMP", "workers"])
def test_sharing(tmp_path: Path, threads: str) -> None:
    result = run(build(tmp_path, "sharing", threads))
    assert "all correct" in result.stdout, result.stdout + result.stderr


@pytest.mark.skipif(not native.available(), reason="the reference has no threads of its own")
def test_threads_in_forked_children() -> None:
    """Torch's own threads do not survive a fork, and its steps hang there; ours must neither hang nor differ."""
    threads = torch.get_num_threads()
    optimizer, expected = (fusedoptim.Adam(make_params([(300, 700), (5,)])) for _ in range(2))
    for one in (optimizer, expected):
        set_grads(one, 1)
        for _ in range(3):
            one.step()
    for _ in range(10):
        expected.step()

    def steps() -> None:
        torch.set_num_threads(max(threads, 4))
        for _ in range(10):
            optimizer.step()
        torch.set_num_threads(1)  # torch compares with threads that are not there
        assert_optimizers_match(optimizer, expected, exact=True)

    in_child(steps)
    in_child(lambda: in_child(steps))
    steps()
    torch.set_num_threads(threads)


@pytest.mark.skipif(not native.available() or sys.platform != "linux", reason="of the kernels, and of Linux's libgomp")
@pytest.mark.parametrize("way", ["os.fork", "multiprocessing", "twice"])
def test_children_that_import_first(way: str) -> None:
    """A fork whose parent had used torch's threads, but not this package, must neither hang in them nor differ."""
    command = [sys.executable, str(ROOT / "tests" / "pool" / "late_import.py"), way]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    of_child, _, of_parent = done.stdout.partition("\n")
    assert of_parent == f"{of_child} 0\n", done.stdout + done.stderr
