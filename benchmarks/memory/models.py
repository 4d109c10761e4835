"""The trainings of `run.py`: those of the harness, and larger ones, whose memory the C library may give back."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.shared.shapes import MODELS, Shape
from benchmarks.shared.workloads import SMALL_LR, WORKLOADS, Task, Workload, regression


class FirstElement(torch.autograd.Function):
    """A parameter's first element; the gradient is written in full, and nothing else is computed."""

    @staticmethod
    def forward(ctx: Any, param: Tensor) -> Tensor:
        ctx.shape = param.shape
        return param.detach().flatten()[0].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad.expand(ctx.shape).clone(memory_format=torch.contiguous_format)


class Bare(nn.Module):
    """Parameters in the shapes of a model, whose loss costs next to nothing beside its gradients."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.full(shape, 0.02) for shape in shapes)

    def forward(self, _: Tensor) -> Tensor:
        return torch.stack([FirstElement.apply(p) for p in self.weights]).square().mean()  # type: ignore[no-untyped-call]


def bare(name: str) -> Task:
    data = torch.zeros(1), torch.zeros(())
    return Task(Bare(MODELS[name].shapes), lambda loss, _: loss, [data])


def images(channels: int = 16, batch: int = 8, size: int = 224, classes: int = 10) -> Task:
    """Three convolutions at full resolution on one batch of random images: little weight, much activation."""
    widths = (3, channels, channels, channels)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
    data = torch.randn(batch, 3, size, size), torch.arange(batch) % classes
    return Task(model, F.cross_entropy, [data])


TINIEST = ("tiny-mlp", "digits-mlp")  # none of their blocks is so large that it would be given back
TRAININGS = {
    **{name: workload for name, workload in WORKLOADS.items() if name not in TINIEST},
    "wide-mlp": Workload(
        "MLP 4096-4096-4096-16, batch 32: gradients of 64 MiB", 10, SMALL_LR,
        lambda: regression((4096, 4096, 4096, 16), 32, "mean"),
    ),
    "image-cnn": Workload("three convolutions on 8 images of 224 x 224: activations of 26 MB", 10, SMALL_LR, images),
    "resnet50": Workload("ResNet-50's shapes; backward writes all gradients", 20, SMALL_LR, lambda: bare("resnet50")),
    "gpt2": Workload("GPT-2's shapes; backward writes all gradients", 5, SMALL_LR, lambda: bare("gpt2")),
}  # fmt: skip
