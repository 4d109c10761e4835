"""What does a storage cost in quality, in trainings to the end?

Small models learn handwritten digits and source text with AdamW in each storage, from several seeds. What is told is
the loss, and for digits the share that is recognised, of data that was held back; and the difference to float32 from
the same seed. Forward and backward are in the dtype of the parameters.

Output: a table for each training, `quality.json`.
"""

import argparse
import copy
import statistics
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any

import torch

import fusedoptim
from benchmarks.shared import options
from benchmarks.shared.files import Record
from benchmarks.shared.report import Table, each
from benchmarks.shared.workloads import Task, bytes_gpt, cnn, digits, mlp
from benchmarks.storage.settings import PLAIN, STORAGES, Storage, bytes_of

LR = 2e-3
TASKS: dict[str, tuple[Callable[[], Task], int, int]] = {  # what is learnt, batches held back, iterations
    "digits, perceptron": (lambda: digits(mlp(64, 256, 128, 10), (64,), count=1797), 5, 600),
    "digits, convolutions": (lambda: digits(cnn(10), (1, 8, 8), count=1797), 5, 400),
    "source text, GPT": (lambda: bytes_gpt(batches=80), 16, 400),
}


def train(task: Task, held_back: int, storage: Storage, iterations: int) -> dict[str, float]:
    """Loss, and the share of right answers, of the batches that were held back."""
    model = copy.deepcopy(task.model).to(storage.param)
    for param in model.parameters():
        param.grad_dtype = storage.grad
    optimizer = fusedoptim.AdamW(model.parameters(), lr=LR, **storage.settings)
    seen, held = task.batches[:-held_back], task.batches[-held_back:]

    def output(x: torch.Tensor) -> torch.Tensor:
        return model(x.to(storage.param) if x.is_floating_point() else x).float()  # type: ignore[no-any-return]

    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for x, y in islice(cycle(seen), iterations):
        task.criterion(output(x), y).backward()  # type: ignore[no-untyped-call]
        sizes = bytes_of(optimizer)
        optimizer.step(zero_grad="to_none")
        schedule.step()
    with torch.no_grad():
        outputs = [(output(x), y) for x, y in held]
        loss = sum(float(task.criterion(o, y)) for o, y in outputs) / len(outputs)
        right = [(o.argmax(-1) == y).float().mean().item() for o, y in outputs]
    return {"loss": loss, "accuracy": statistics.mean(right), **sizes}


def run(name: str, seeds: int, iterations: int | None) -> dict[str, Any]:
    make, held_back, most = TASKS[name]
    found: dict[str, list[dict[str, float]]] = {storage: [] for storage in STORAGES}
    for seed in range(seeds):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            task = make()
            for storage, results in found.items():
                results.append(train(task, held_back, STORAGES[storage], iterations or most))
    return {"task": name, "variants": {storage: summary(results, found[PLAIN]) for storage, results in found.items()}}


def summary(results: list[dict[str, float]], plain: list[dict[str, float]]) -> dict[str, Any]:
    """Means over the seeds, with their standard deviations; and the mean of the differences of the losses."""
    values = {key: [result[key] for result in results] for key in ("loss", "accuracy")}
    values["difference"] = [mine["loss"] - theirs["loss"] for mine, theirs in zip(results, plain, strict=True)]
    figures = {key: {"mean": statistics.mean(v), "deviation": statistics.pstdev(v)} for key, v in values.items()}
    return {**figures, **{key: results[0][key] for key in ("bytes", "state_bytes")}}


def measure(args: argparse.Namespace) -> Record:
    names = list(TASKS)[: 1 if args.quick else None]
    iterations = 30 if args.quick else None
    return {"results": [run(name, args.rounds, iterations) for name in each(names, str)], "seeds": args.rounds}


def with_deviation(key: str, form: str) -> Any:
    return lambda figures: f"{figures[key]['mean']:{form}} ±{figures[key]['deviation']:{form.lstrip('+')}}"


def tables(record: Record) -> Iterator[Table]:
    columns = {
        "loss": with_deviation("loss", ".4f"), "beyond fp32": with_deviation("difference", "+.4f"),
        "right": with_deviation("accuracy", ".2%"), "bytes a parameter": "bytes", "of them state": "state_bytes",
    }  # fmt: skip
    for result in record["results"]:
        yield Table.of(columns, result["variants"], f"{result['task']}, {record['seeds']} seeds", PLAIN)


main = options.question(__doc__, "quality", measure, tables, rounds=(5, 2))
