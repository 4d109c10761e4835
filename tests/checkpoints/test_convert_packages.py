"""Other libraries' state in 8 bits is what they say it is, and the next step is the one that they would take.

Each needs its package, as ``.venv-peers`` has them, or ``pip install flashoptim triton``. flashoptim's kernels run on a
GPU, or with ``TRITON_INTERPRET=1`` anywhere.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from typing import Any

import helpers
import pytest
import torch
from helpers import make_params, set_grads
from torch import Tensor
from torch.nn import Parameter

import fusedoptim

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend", "one_thread")

LARGE = [(64, 128), (7,)]  # the first has 8 bits everywhere, the second nowhere


def dequantized_by_bitsandbytes(entry: dict[str, Any]) -> list[Tensor]:
    functional = pytest.importorskip("bitsandbytes").functional
    entry = entry.get("__bnb_optimizer_quant_state__", entry)
    if "qmap1" not in entry:
        return [entry["state1"], entry["state2"]]
    return [
        functional.dequantize_blockwise(
            entry[f"state{n}"], absmax=entry[f"absmax{n}"], code=entry[f"qmap{n}"], blocksize=256
        )
        for n in "12"
    ]


def dequantized_by_torchao(entry: dict[str, Any]) -> list[Tensor]:
    return [x.dequantize() if type(x) is not Tensor else x for x in (entry["exp_avg"], entry["exp_avg_sq"])]


def as_they_are(entry: dict[str, Any]) -> list[Tensor]:
    return [entry["exp_avg"], entry["exp_avg_sq"]]


FLASH = {"quantize": False, "master_weight_bits": None, "fused": False}  # what it does on a CPU
PACKAGES = [
    ("bitsandbytes.optim", "AdamW8bit", {}, "AdamW", dequantized_by_bitsandbytes),
    ("bitsandbytes.optim", "Adam8bit", {}, "Adam", dequantized_by_bitsandbytes),
    ("bitsandbytes.optim", "AdamW32bit", {}, "AdamW", dequantized_by_bitsandbytes),
    ("torchao.optim", "AdamW8bit", {}, "AdamW", dequantized_by_torchao),
    ("torchao.optim", "Adam8bit", {}, "Adam", dequantized_by_torchao),
    ("torchao.optim", "AdamW4bit", {}, "AdamW", dequantized_by_torchao),
    ("torchao.optim", "AdamWFp8", {}, "AdamW", dequantized_by_torchao),
    ("flashoptim", "FlashAdamW", FLASH, "AdamW", as_they_are),
    ("flashoptim", "FlashAdam", FLASH, "Adam", as_they_are),
]


@pytest.fixture
def eager() -> Iterator[None]:
    """Without the compiler, with which torchao takes its steps."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    ("package", "theirs", "options", "ours", "dequantized"), PACKAGES, ids=[f"{x[0]}.{x[1]}" for x in PACKAGES]
)
def test_the_next_step_is_theirs(
    package: str, theirs: str, options: dict[str, Any], ours: str, dequantized: Callable[[dict[str, Any]], list[Tensor]]
) -> None:
    """To a few roundings of values of order 1."""
    module = pytest.importorskip(package)
    params = make_params(LARGE)
    first = getattr(module, theirs)(params, lr=0.01, weight_decay=0.1, **options)
    for seed in range(5):
        set_grads(first, seed)
        first.step()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    converted = fusedoptim.convert_state_dict(saved)
    for index, entry in saved["state"].items():
        for name, numbers in zip(("exp_avg", "exp_avg_sq"), dequantized(entry), strict=True):
            assert converted["state"][index][name].dtype == torch.float32
            assert torch.equal(converted["state"][index][name], numbers)
    copies = [Parameter(p.detach().clone()) for p in params]
    second = getattr(fusedoptim, ours)(copies, lr=9.0)
    second.load_state_dict(converted)
    for optimizer in (first, second):
        set_grads(optimizer, 5)
        optimizer.step()
    for p, q in zip(params, copies, strict=True):
        torch.testing.assert_close(q, p, rtol=0, atol=1e-6)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="its kernels run on a GPU")
@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_flashoptims_kernel_reads_the_same(name: str) -> None:
    kernel = pytest.importorskip("flashoptim").optimizers._triton_dequantize_kernel.fn
    is_first = name == "exp_avg"
    codes = (torch.arange(300) % 255 - (127 if is_first else 0)).to(torch.int8 if is_first else torch.uint8)
    scale, numbers = torch.linspace(0.5, 2, 10).half(), torch.empty(300)
    kernel[(1,)](codes, scale, numbers, 300, 127.0 if is_first else 255.0, 32, not is_first, is_first, BLOCK_SIZE_N=512)
    entry = {"step": 1, "exp_avg": torch.ones(300), "exp_avg_sq": torch.ones(300)}
    del entry[name]
    group = {"lr": 1, "betas": (0.8, 0.9), "eps": 1e-8, "weight_decay": 0, "master_bytewidth": 3, "params": [0]}
    saved = {"state": {0: {**entry, f"{name}::quantized": codes, f"{name}::scales": scale}}, "param_groups": [group]}
    assert torch.equal(fusedoptim.convert_state_dict(saved)["state"][0][name], numbers)
