"""Steps in a child forked from a process that has stepped with several threads: the part "fork" of `busy.py`."""

import argparse
import json
import multiprocessing
import os
import selectors
import signal
import traceback
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import product
from typing import Any

import torch
from rich.console import Console

from benchmarks.shared.measure import Spread, interleaved, ratio
from benchmarks.shared.report import correct_text, make_table, spread_text
from benchmarks.shared.series import Stepper
from benchmarks.shared.variants import OURS

VARIANTS = ("torch-fused", OURS)
WAYS = ("os.fork", "multiprocessing")
THREADS = (None, 1)  # what the child sets; None: nothing, so as many as the parent
STEPS, WARM_UP = 20, 3
Case = tuple[str, str, int | None]  # variant, way, threads of the child
TIMEOUT = 8.0  # seconds for the child: far more than its steps take on the slowest machine


def work(stepper: Stepper, variant: str) -> dict[str, float]:
    """A series from the initial values on: its median, and a checksum of the parameters."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, torch's own operators hang in a forked child
    stepper.arena.reset()
    torch.set_num_threads(threads)
    for state in stepper.calls[variant].__self__.state.values():  # type: ignore[attr-defined]
        state["step"].zero_()
    for _ in range(WARM_UP):  # among other things these copy the pages that the processes shared
        stepper.calls[variant]()
    time = stepper.median(variant, STEPS, TIMEOUT / 4)
    params = (p.detach().numpy() for p in stepper.arena.params)
    return {"time": time, "checksum": sum(zlib.crc32(p.data) for p in params)}


def child(writer: int, task: Callable[[], dict[str, Any]], threads: int | None) -> None:
    """What the child does: the task, its outcome into the pipe, and out, with nothing of the parent's cleaned up."""
    try:
        if threads:
            torch.set_num_threads(threads)
        outcome: dict[str, Any] = task()
    except BaseException:
        outcome = {"error": traceback.format_exc()}
    os.write(writer, json.dumps(outcome).encode())
    os._exit(0)


def forked(
    way: str, task: Callable[[], dict[str, Any]], threads: int | None, timeout: float | None = None
) -> dict[str, Any]:
    """The outcome of a task in a forked child; {"hang": seconds} if it has none within `timeout`, or `TIMEOUT`."""
    timeout = timeout or TIMEOUT
    reader, writer = os.pipe()
    if way == "os.fork":
        pid = os.fork()
        if pid == 0:
            child(writer, task, threads)
    else:
        process = multiprocessing.get_context("fork").Process(target=child, args=(writer, task, threads))
        process.start()
        pid = process.pid or 0
    os.close(writer)
    with selectors.DefaultSelector() as selector, os.fdopen(reader, "rb") as pipe:
        selector.register(pipe, selectors.EVENT_READ)
        hangs = not selector.select(timeout)
        if hangs:
            os.kill(pid, signal.SIGKILL)
        text = pipe.read()
    os.waitpid(pid, 0)
    if hangs:
        return {"hang": timeout}
    return json.loads(text) if text else {"error": "the child died"}  # type: ignore[no-any-return]


def run(model: str, variant: str, way: str, threads: int | None) -> dict[str, Any]:
    """In a process of its own: steps, forks, and steps once more."""
    stepper = Stepper(model, [variant])
    parent = work(stepper, variant)
    outcome = forked(way, lambda: work(stepper, variant), threads)
    return {"parent": parent, "child": outcome, "parent_after": work(stepper, variant)}


def fork_part(model: str, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measures on the shapes of a model, prints the table, and returns the result as a JSON object."""
    cases = list(product(VARIANTS, WAYS, THREADS))
    rounds: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
    for case in interleaved(cases, 1 if args.quick else 3):
        if not (rounds[case] and failed(rounds[case][-1])):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
                rounds[case].append(executor.submit(run, model, *case).result(6 * TIMEOUT))
    results = [
        {"variant": variant, "way": way, "child_threads": threads, **summary(rounds[variant, way, threads])}
        for variant, way, threads in cases
    ]
    columns = ("", "threads", "parent, µs", "child, µs", "child / parent", "after / before", "result")
    rows = [
        (f"{r['variant']}, {r['way']}", str(r["child_threads"] or torch.get_num_threads()), *cells(r)) for r in results
    ]
    console.print(make_table(f"{model}, Adam, in a forked child", columns, rows))
    return {"results": results, "claims": [], "good": all(r["correct"] for r in results if r["variant"] == OURS)}


def failed(outcome: Mapping[str, Any]) -> bool:
    """Whether the child of a round has not come to its end."""
    return "time" not in outcome["child"]


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The outcome of all rounds, or of the one that failed."""
    parents = [r["parent"]["time"] for r in rounds]
    after = ratio([r["parent_after"]["time"] for r in rounds], parents)
    result: dict[str, Any] = {"parent": asdict(Spread.of(parents)), "after": asdict(after), "correct": False}
    if failed(rounds[-1]):
        return {**result, "failure": rounds[-1]["child"]}
    children = [r["child"]["time"] for r in rounds]
    result |= {"child": asdict(Spread.of(children)), "ratio": asdict(ratio(children, parents))}
    result["correct"] = all(r["child"]["checksum"] == r["parent"]["checksum"] for r in rounds)
    return result


def cells(result: Mapping[str, Any]) -> tuple[str, ...]:
    """The figures of a row."""
    parent, after = spread_text(Spread(**result["parent"])), spread_text(Spread(**result["after"]))
    if "failure" in result:
        failure = result["failure"]
        text = f"HANGS ({failure['hang']:.0f} s)" if "hang" in failure else failure["error"].splitlines()[-1]
        return parent, f"[bold red]{text}[/]", "-", after, "-"
    child, slower = (spread_text(Spread(**result[key])) for key in ("child", "ratio"))
    return parent, child, slower, after, correct_text(result["correct"])
