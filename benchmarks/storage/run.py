"""How long does a step take in each storage, and how many bytes?

AdamW's step at the shapes of known models, each storage in the same rounds on tensors of its own; the ratio is to our
plain step in float32 in the same round. Beside each time stands whether three steps had the bits of the reference.

Output: a table for each model, `storage.json`; exit status 1 if a result was wrong.
"""

import argparse
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch.nn import Parameter

import fusedoptim
from benchmarks.shared import options
from benchmarks.shared.files import Record
from benchmarks.shared.measure import ratio, spread, time_rounds
from benchmarks.shared.report import Table, each, result_text
from benchmarks.shared.shapes import MODELS, Shape
from benchmarks.storage.settings import PLAIN, STORAGES, Storage, bytes_of

SECONDS = 60.0  # of one storage at one model
CHECKED = ((300, 300), (4097,), (64, 16, 3, 3))


def make_optimizer(storage: Storage, shapes: tuple[Shape, ...]) -> Any:
    generator = torch.Generator().manual_seed(0)
    params = []
    for shape in shapes:
        param = Parameter((torch.randn(shape, generator=generator) * 0.02).to(storage.param))
        param.grad_dtype = storage.grad
        param.grad = (torch.randn(shape, generator=generator) * 0.01).to(storage.grad)
        params.append(param)
    return fusedoptim.AdamW(params, lr=1e-3, **storage.settings)


def is_correct(storage: Storage) -> bool:
    """Whether steps have the bits of the reference."""
    optimizer = make_optimizer(storage, CHECKED)
    with fusedoptim.verify(optimizer, elements=max(map(prod, CHECKED))) as verification:
        for _ in range(3):
            optimizer.step()
    return verification.checked == 3 * len(CHECKED) and not verification.differences


def run(model: str, rounds: int | None) -> dict[str, Any]:
    of = MODELS[model]
    made = {name: make_optimizer(storage, of.shapes) for name, storage in STORAGES.items()}
    calls = {name: optimizer.step for name, optimizer in made.items()}
    times = time_rounds(calls, rounds or of.rounds, of.repeats, warm_up=3, seconds=SECONDS)
    variants = {}
    for name, optimizer in made.items():
        variants[name] = {
            "time": spread(times[name]), "ratio": ratio(times[name], times[PLAIN]),
            "correct": is_correct(STORAGES[name]), **bytes_of(optimizer),
        }  # fmt: skip
    return {"model": model, "variants": variants}


def measure(args: argparse.Namespace) -> Record:
    models = args.models or (("tutorial-mlp",) if args.quick else ("tutorial-mlp", "resnet50", "gpt2"))
    return {"results": [run(model, args.rounds) for model in each(models, str)]}


def tables(record: Record) -> Iterator[Table]:
    columns: Mapping[str, Any] = {
        "µs": "time", "of the time in fp32": "ratio", "bytes a parameter": "bytes", "of them state": "state_bytes",
        "result": result_text,
    }  # fmt: skip
    for result in record["results"]:
        yield Table.of(columns, result["variants"], f"AdamW, {result['model']}", PLAIN)


main = options.question(__doc__, "storage", measure, tables, {"--models": MODELS}, rounds=(None, 5))
