"""Does it work on a GPU, to the last bit, and how fast is it? All that only a GPU can show, in under eight minutes.

Four parts, each in a process of its own, so that a kernel that faults or hangs costs no more than what it was in:

* build: the package in place, for this GPU, unless the module that is here has machine code for it;
* bits: steps on the GPU leave the bits that the CPU kernels leave on copies, whatever the case, dtype, size and layout;
* sanitize: compute-sanitizer's memcheck and racecheck on a short run;
* time: steps and training loops beside torch's, and the bandwidth beside a copy's.

Output: tables, `gpu.json`; exit status 1 if anything was wrong or failed, 2 without a CUDA device. A missed target of
speed is no failure.
"""

import argparse
import dataclasses
import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.gpu.build import build, find_sanitizer, missing, stand_ins
from benchmarks.gpu.parts import PARTS, Calls, Record, run_limited, run_part, run_units
from benchmarks.shared.files import QUICK_RESULTS, RESULTS, save_json

RESULT, QUICK_RESULT = RESULTS / "gpu.json", QUICK_RESULTS / "gpu.json"
REHEARSED = ROOT / "build" / "gpu_rehearsal.json"
COMMAND = (sys.executable, "-m", "benchmarks", "gpu")
RESERVE_S = 8  # of the budget, for starting processes and printing
SANITIZER_S = 75
CLEAN = {"memcheck": r"ERROR SUMMARY: 0 errors", "racecheck": r"RACECHECK SUMMARY: 0 hazards"}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = "the JSON (default: benchmarks/results/gpu.json, with --quick build/bench/gpu.json)"
    parser.add_argument("--output", type=Path, help=text)
    parser.add_argument("--quick", action="store_true", help="fewer cases and rounds: no figures to quote")
    parser.add_argument("--only", choices=PARTS, help="one part; it takes the build as it is")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything; what is left then is left out (8)")
    text = "take the CPU for the GPU, with small tensors: a test of this program"
    parser.add_argument("--rehearse", action="store_true", help=text)
    parser.add_argument("--short-run", action="store_true", help="a few checks in this process: for the sanitizers")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # what a process of a part is told
    parser.add_argument("--until", type=float, default=float("inf"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.output = args.output or (REHEARSED if args.rehearse else QUICK_RESULT if args.quick else RESULT)
    if args.minutes <= 0:
        parser.error(f"--minutes must be positive, got {args.minutes:g}")
    return args


def build_calls(args: argparse.Namespace) -> Calls:
    if args.rehearse:
        return {"module": lambda: {"passed": True, "why": "a rehearsal builds nothing"}}
    return {"module": partial(build, torch.cuda.get_device_capability())}


def bits_calls(args: argparse.Namespace, short: bool = False) -> Calls:
    """The checks of bits, which lie with the tests, as does the table of cases; `short` for the sanitizers."""
    sys.path += [folder for folder in (str(ROOT / "tests"), str(ROOT / "tests" / "tools")) if folder not in sys.path]
    with stand_ins():
        bits, checks = map(importlib.import_module, ("on_device.bits", "on_device.checks"))
    is_small = args.rehearse or short
    sizes = bits.SHORT_SIZES if is_small else bits.SIZES
    settings = bits.Settings(bits.Device("cpu" if args.rehearse else "cuda:0"), sizes, quick=args.quick or is_small)
    chosen = checks.SHORT_CHECKS if short else checks.CHECKS

    def checked(name: str) -> dict[str, Any]:
        found = bits.run(chosen[name](settings))
        return {**found, "why": "; ".join(found["lines"][:3])}

    return {name: partial(checked, name) for name in chosen}


def time_calls(args: argparse.Namespace) -> Calls:
    with stand_ins():
        from benchmarks.gpu import time as times
    if args.rehearse:
        return dict(times.units(times.rehearsal()))
    plan = times.Plan(torch.device("cuda:0"))
    if args.quick:
        plan = dataclasses.replace(plan, rounds=5, loop_rounds=2, iterations=30)
    return dict(times.units(plan))


def sanitize(tool: str, args: argparse.Namespace) -> dict[str, Any]:
    """One tool of compute-sanitizer on the short run."""
    program = find_sanitizer()
    if program is None:
        return {"passed": True, "state": "skipped", "why": "no compute-sanitizer on PATH or beside nvcc"}
    command = [str(program), "--tool", tool, *COMMAND, "--short-run", *["--rehearse"] * args.rehearse]
    # Without torch's cache every tensor is an allocation of its own, whose ends the tool sees.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    seconds = max(5.0, min(SANITIZER_S, args.until - time.time()))
    with tempfile.TemporaryFile("w+") as log:
        status = run_limited(command, seconds, environment, log)
        log.seek(0)
        if status is None:
            return {"passed": True, "state": "skipped", "why": f"{tool} had not finished after {seconds:.0f} s"}
        return judged(tool, status, log.read())


def judged(tool: str, status: int, output: str) -> dict[str, Any]:
    """What the output of a sanitizer says: clean only if it says so itself, and the short run was correct."""
    lines = [line.removeprefix("=========").strip() for line in output.splitlines() if line.startswith("=========")]
    summary = [line for line in lines if "SUMMARY" in line]
    is_clean = status == 0 and re.search(CLEAN[tool], output) is not None and "short run: correct" in output
    last = output.strip().splitlines()[-3:]
    why = "; ".join(summary[-1:] or lines[:3] or last) if not is_clean else summary[-1]
    return {"passed": is_clean, "status": status, "why": why, "lines": [] if is_clean else [*lines[:40], *last]}


def short_run(args: argparse.Namespace) -> int:
    """The checks that the sanitizers watch."""
    found = {name: call() for name, call in bits_calls(args, short=True).items()}
    wrong = [f"{name}: {result['why']}" for name, result in found.items() if not result["passed"]]
    print("\n".join(wrong) or f"short run: correct, {sum(r['compared'] for r in found.values())} comparisons")
    return int(bool(wrong))


def sanitize_calls(args: argparse.Namespace) -> Calls:
    return {tool: partial(sanitize, tool, args) for tool in CLEAN}


CALLS = {"build": build_calls, "bits": bits_calls, "sanitize": sanitize_calls, "time": time_calls}


def machine(args: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.shared.measure import machine_info

    info = machine_info(torch.device("cpu" if args.rehearse else "cuda:0"))
    if args.rehearse:
        return info
    properties, driver = torch.cuda.get_device_properties(0), None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.TimeoutExpired, IndexError):
        driver = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.split()[0]
    memory, count = round(properties.total_memory / 1e9, 1), properties.multi_processor_count
    found = {"driver": driver, "gpu_memory_gb": memory, "multiprocessors": count}
    return {**info, **found, "devices": torch.cuda.device_count()}


def check(args: argparse.Namespace) -> int:
    begin = time.time()
    end = begin + 60 * args.minutes - RESERVE_S
    settings = {"quick": args.quick, "rehearsal": args.rehearse, "minutes": args.minutes}
    record: Record = {"settings": settings, "parts": {}}
    passed_on = ["--quick"] * args.quick + ["--rehearse"] * args.rehearse
    for name, part in PARTS.items():
        if args.only in (None, name):
            until = end if args.only else begin + part.share * (end - begin)
            record["parts"][name] = run_part(name, [*COMMAND, *passed_on], args.output, until)
            save_json(args.output, record)
    try:
        record["machine"] = machine(args)
        with stand_ins():
            from benchmarks.gpu import report as gpu_report
            from benchmarks.shared.report import machine_line, make_console
    except Exception as error:  # the package is not there, for the build has failed; or rich is not
        save_json(args.output, record)
        print(f"gpu: no tables: {type(error).__name__}: {error}")
        return 1
    record["targets"] = [target._asdict() for target in gpu_report.targets(record)]
    save_json(args.output, record)
    console = make_console()
    console.print(machine_line(record["machine"]), "[dim]±: half the interquartile range[/]\n")
    gpu_report.show(record, console)
    console.print(f"{time.time() - begin:.0f} s; results written to {args.output}")
    return int(bool(gpu_report.lines(record, "failed")))


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    if not args.rehearse and not torch.cuda.is_available():
        print(f"gpu: no CUDA device: torch {torch.__version__} sees none here", file=sys.stderr)
        return 2
    if args.short_run:
        return short_run(args)
    if args.part:
        return run_units(CALLS[args.part](args), args.output, args.until)
    if absent := missing():
        print(f"gpu: not installed, and hardly needed: {', '.join(absent)}")
    return check(args)
