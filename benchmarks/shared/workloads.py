"""The trainings that are timed: model, data, loss and learning rates."""

import copy
import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """Everything a training needs; each training takes its own copy of the model and leaves the task as it is."""

    model: nn.Module  # untrained, the same for every variant
    criterion: Callable[[Tensor, Tensor], Tensor]  # loss of (output, target)
    batches: list[Batch]  # inputs and targets, visited in turn

    def to(self, device: torch.device, dtype: torch.dtype) -> "Task":
        """The same task with its floating-point tensors in `dtype`, all on `device`."""

        def move(batch: Batch) -> Batch:
            x, y = (t.to(device, dtype if t.is_floating_point() else t.dtype) for t in batch)
            return x, y

        model = copy.deepcopy(self.model).to(device, dtype)
        batches = [move(batch) for batch in self.batches]
        return Task(model, self.criterion, batches)


@dataclass(frozen=True)
class Workload:
    summary: str  # one line for tables and help
    iterations: int  # of one timed run
    lr: Mapping[str, float]  # by optimizer
    make: Callable[[], Task]  # on the CPU in fp32; random numbers come from torch's global generator

    def task(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Task:
        """The task on `device`, the same in every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make().to(device, dtype)


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers of the given widths with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn(classes: int) -> nn.Sequential:
    """A small convolutional classifier of images `(batch, 1, 8, 8)`."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, classes),
    )


class Block(nn.Module):
    """A transformer block: attention, then a perceptron, each on a normalised copy and added back."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(batch, time, width)` to the same shape."""
        batch, time, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, time, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, time, width))
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """A decoder-only transformer whose output layer shares the token embedding, after Radford et al. 2019."""

    def __init__(self, vocabulary: int, context: int, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        for embedding in (self.token, self.position):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens `(batch, time)` to logits `(batch, time, vocabulary)`."""
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        return self.norm(self.blocks(x)) @ self.token.weight.T  # type: ignore[no-any-return]


def regression(widths: tuple[int, ...], batch: int, reduction: str) -> Task:
    """An MLP that learns one batch of random numbers, as in the first PyTorch tutorial."""
    criterion = nn.MSELoss(reduction=reduction)
    data = torch.randn(batch, widths[0]), torch.randn(batch, widths[-1])
    return Task(mlp(*widths), criterion, [data])


def digits(model: nn.Module, shape: tuple[int, ...], batch: int = 64, count: int = 1437) -> Task:
    """The first `count` of scikit-learn's 1,797 handwritten digits, images of 8 x 8."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # a GPU's machine may lack it

    data = load_digits()
    x = torch.tensor(data.data / 16.0, dtype=torch.float32).view(-1, *shape)
    y = torch.tensor(data.target)
    batches = [(x[i : i + batch], y[i : i + batch]) for i in range(0, count - batch + 1, batch)]
    return Task(model, F.cross_entropy, batches)


def byte_loss(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def library_text(size: int) -> Tensor:
    """The first `size` bytes of the standard library's own source, as int64."""
    text = bytearray()
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        text += path.read_bytes()
        if len(text) >= size:
            break
    return torch.frombuffer(text, dtype=torch.uint8)[:size].long()


def bytes_gpt(context: int = 64, batch: int = 8, batches: int = 64) -> Task:
    """A two-layer GPT that learns to continue the standard library's source text, byte by byte."""
    text = library_text(1_000_000)
    windows = text[: len(text) // (context + 1) * (context + 1)].view(-1, context + 1)
    windows = windows[torch.randperm(len(windows))[: batches * batch]]
    inputs, targets = (torch.split(t.contiguous(), batch) for t in (windows[:, :-1], windows[:, 1:]))
    model = GPT(vocabulary=256, context=context, layers=2, width=64, heads=4)
    return Task(model, byte_loss, list(zip(inputs, targets, strict=True)))


class Rates(dict[str, float]):
    __missing__ = lambda self, _: self["adam"]  # noqa: E731


TUTORIAL_LR = Rates(sgd=1e-5, adam=1e-4)
SMALL_LR = Rates(sgd=1e-2, adam=1e-3)

WORKLOADS = {
    "tutorial": Workload(
        "MLP 2000-200-20, batch 128, summed squared error", 500, TUTORIAL_LR,
        lambda: regression((2000, 200, 20), 128, "sum"),
    ),
    "tutorial-b1": Workload("the same at batch 1", 500, TUTORIAL_LR, lambda: regression((2000, 200, 20), 1, "sum")),
    "tiny-mlp": Workload(
        "MLP 4-64-64-2, batch 32, as in control tasks", 1000, SMALL_LR, lambda: regression((4, 64, 64, 2), 32, "mean")
    ),
    "digits-mlp": Workload(
        "MLP 64-128-64-10 on handwritten digits, batch 64", 500, SMALL_LR,
        lambda: digits(mlp(64, 128, 64, 10), (64,)),
    ),
    "digits-cnn": Workload(
        "two convolutions on handwritten digits, batch 64", 200, SMALL_LR,
        lambda: digits(cnn(10), (1, 8, 8)),
    ),
    "bytes-gpt": Workload(
        "GPT, 2 layers of width 64, on source text as bytes, batch 8 x 64", 100, SMALL_LR, bytes_gpt
    ),
}  # fmt: skip
