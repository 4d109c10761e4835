"""Counts instructions per call under callgrind, which is exact where a clock is not."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks import ROOT
from benchmarks.gate.cases import CALLS
from benchmarks.shared.probe import compile_shared

OBJECT = re.compile(r"c?ob=\((\d+)\)(?: (.+))?")
TIME_LIMIT = 600


class Count(NamedTuple):
    total: int  # all of them, Python's and torch's included
    module: int  # those of our compiled module alone


def why_not() -> str | None:
    """What is missing for counting, None if nothing."""
    if shutil.which("valgrind") is None:
        return "valgrind is not installed"
    listing = Path("/proc/cpuinfo")
    if not listing.exists() or " avx2 " not in listing.read_text():
        return "this processor has no AVX2, and valgrind then has none to offer"
    return None


def read_dump(lines: Iterable[str]) -> tuple[str, dict[str, int], int]:
    """Reads a dump of callgrind: its trigger, the instructions of each object file's own code, and their total."""
    names: dict[str, str] = {}
    costs: dict[str, int] = {}
    trigger = ours = ""
    total = 0
    inclusive = False  # the line after "calls=" repeats what the callee's own lines say
    for line in lines:
        if found := OBJECT.match(line):
            number, name = found.groups()
            names.setdefault(number, (name or "").strip())
            if line.startswith("ob="):
                ours = names[number]
        elif line.startswith("calls="):
            inclusive = True
        elif line[:1] in "+-*" or line[:1].isdigit():
            if not inclusive:
                costs[ours] = costs.get(ours, 0) + int(line.split()[-1])
            inclusive = False
        elif line.startswith("desc: Trigger: "):
            trigger = line.removeprefix("desc: Trigger: ").strip()
        elif line.startswith("totals: "):
            total = int(line.split()[1])
    return trigger, costs, total


def count_of(costs: dict[str, int]) -> Count:
    """Per call, without the few instructions of the client."""
    kept = {Path(name): cost for name, cost in costs.items() if not name.endswith("gate_client.so")}
    module = sum(cost for path, cost in kept.items() if path.parent.name == "fusedoptim")
    return Count(sum(kept.values()) // CALLS, module // CALLS)


def count_instructions() -> dict[str, Count]:
    """Runs `counted.py` under callgrind: the counts by path, model, rule, instruction set and call, or RuntimeError."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        client = folder / "gate_client.so"
        compile_shared(Path(__file__).with_name("client.cpp"), client, ("-O1",), "the client of callgrind")
        command = ["valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no", "--collect-atstart=no"]
        command += [f"--callgrind-out-file={folder}/out.%p", sys.executable, "-m", "benchmarks.gate.counted"]
        kept = {key: value for key, value in os.environ.items() if not key.startswith("FUSEDOPTIM_")}
        fixed = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        how = {"cwd": ROOT, "env": kept | fixed, "capture_output": True, "text": True, "timeout": TIME_LIMIT}
        done = subprocess.run([*command, str(client)], check=False, **how)  # type: ignore[call-overload]
        if done.returncode:
            raise RuntimeError(f"counting failed:\n{done.stdout}{done.stderr}")
        counts = {}
        for path in folder.glob("out.*.*"):
            with path.open() as lines:
                trigger, costs, total = read_dump(lines)
            if not trigger.startswith("Client Request: "):
                continue
            if not 0 < total == sum(costs.values()):
                raise RuntimeError(f"{trigger}: {sum(costs.values())} instructions add up to {total}")
            counts[trigger.removeprefix("Client Request: ")] = count_of(costs)
    return dict(sorted(counts.items()))
