"""Parts of a check, each in its own process and within its share of the time; and what they leave in a record.

The process of a part writes its record after every unit, so that nothing is lost with it. If it dies, the unit that
was running has failed, and another process goes on with the rest.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from benchmarks import ROOT
from benchmarks.shared.files import load_json, save_json

Record = dict[str, Any]
Calls = Mapping[str, Callable[[], dict[str, Any]]]

RESTARTS = 3
GRACE_S = 20  # beyond its time until a process is ended; it looks at the clock between units itself
BROKEN = 3  # exit status: an error that outlives the call that made it, so another process must go on


class Part(NamedTuple):
    share: float  # of the budget that may be spent when it ends
    least_s: float  # seconds without which it is not worth beginning


# Of eight minutes: a build of one architecture takes one to two; the rest of a share falls to the next part.
PARTS = {"build": Part(0.5, 40), "bits": Part(0.62, 40), "sanitize": Part(0.8, 40), "time": Part(1.0, 40)}


def is_broken() -> bool:
    """Whether the GPU of this process takes no more work."""
    try:
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
    except Exception:
        return True
    return False


def run_units(calls: Calls, path: Path, until: float) -> int:
    """Runs the units of a part, in its process, that the record at `path` does not have; none begins after `until`.

    The exit status is 0, or `BROKEN` if another process must go on.
    """
    units: dict[str, Any] = load_json(path)
    for name, call in calls.items():
        if name in units:
            continue
        late, begin = time.time() > until, time.time()
        units[name] = {"state": "skipped", "why": "no time left"} if late else {"state": "running"}
        save_json(path, units)
        if late:
            continue
        try:  # what a unit returns may say "skipped" itself
            found = call()
            unit = {"state": "passed" if found["passed"] else "failed", **found}
        except Exception as error:
            unit = {"state": "failed", "why": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
        units[name] = unit | {"seconds": time.time() - begin}
        save_json(path, units)
        print(f"{name}: {unit['state']} ({time.time() - begin:.1f} s) {unit.get('why', '')}", flush=True)
        if is_broken():
            return BROKEN
    return 0


def run_limited(
    command: Sequence[str], seconds: float, environment: Mapping[str, str], log: IO[str] | None = None
) -> int | None:
    """The exit status of a command, which writes into `log` if there is one; None if it is ended after so long."""
    to = {} if log is None else {"stdout": log, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **to)  # type: ignore[call-overload]
    try:
        return process.wait(seconds)  # type: ignore[no-any-return]
    except subprocess.TimeoutExpired:
        return None
    finally:  # also when somebody interrupts us
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_part(name: str, command: Sequence[str], output: Path, until: float) -> Record:
    """Runs processes of a part, begun by `command`, until all its units are done, or its time is (by `time.time()`).

    The record of the part, which lies beside `output` meanwhile, has `state`, `why` if it has not passed, and `units`.
    """
    left = max(0.0, until - time.time())
    if left < PARTS[name].least_s:
        print(f"{name}: left out, {left:.0f} s of its time left", flush=True)
        return {"state": "skipped", "why": f"{left:.0f} s left, and it needs {PARTS[name].least_s:.0f}"}
    print(f"==> {name}, at most {left:.0f} s", flush=True)
    path = output.resolve().with_name(f"{output.name}.{name}")
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    begin, why = time.time(), ""
    for _ in range(1 + RESTARTS):
        started = [*command, "--part", name, "--output", str(path), "--until", str(until - GRACE_S)]
        before = len(load_json(path))
        # By default threads of a busy machine spin while they wait for one another, which the checks do a lot.
        environment = {"OMP_WAIT_POLICY": "passive", "KINETO_LOG_LEVEL": "99", **os.environ}
        status = run_limited(started, max(1.0, until - time.time()), environment)
        late = "it did not end in time, and what followed was not begun"
        why = late if status is None else f"its process ended with status {status}"
        units = load_json(path)
        for unit in units.values():
            if unit["state"] == "running":
                unit.update(state="failed", why=why)
        save_json(path, units)
        if status in (0, None) or (len(units) == before and status != BROKEN):
            break
    path.unlink(missing_ok=True)
    failed = [unit for unit in units.values() if unit["state"] == "failed"]
    states = {unit["state"] for unit in units.values()}
    if status == 0 and states == {"skipped"}:
        state, why = "skipped", "nothing of it could run"
    else:
        state = "passed" if status == 0 and "passed" in states and not failed else "failed"
        why = f"{len(failed)} of {len(units)} failed" if failed else why
    record: Record = {"state": state, "seconds": time.time() - begin, "units": units}
    return record if state == "passed" else {**record, "why": why}
