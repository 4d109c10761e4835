"""The parameter shapes of known models, for timing a step without the model."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Model:
    shapes: tuple[Shape, ...]  # in the order of `Module.parameters()`
    rounds: int  # measurements that give a steady median in reasonable time
    repeats: int = 1  # calls in a row of a measurement: several where one takes microseconds

    @property
    def elements(self) -> int:
        return sum(map(prod, self.shapes))


def resnet50() -> Iterator[Shape]:
    """ResNet-50 (He et al. 2015) with 1,000 classes: convolutions without bias, each with a batch norm."""

    def convolution(inputs: int, outputs: int, size: int) -> Iterator[Shape]:
        yield from ((outputs, inputs, size, size), (outputs,), (outputs,))

    yield from convolution(3, 64, 7)
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from convolution(inputs, width, 1)
            yield from convolution(width, width, 3)
            yield from convolution(width, 4 * width, 1)
            if block == 0:
                yield from convolution(inputs, 4 * width, 1)
            inputs = 4 * width
    yield from ((1000, inputs), (1000,))


def gpt2(width: int = 768, layers: int = 12) -> Iterator[Shape]:
    """GPT-2 (Radford et al. 2019), output layer tied to the token embedding."""
    norm = ((width,), (width,))
    yield from ((50257, width), (1024, width))
    for _ in range(layers):
        yield from norm
        yield from ((width, 3 * width), (3 * width,), (width, width), (width,))
        yield from norm
        yield from ((width, 4 * width), (4 * width,), (4 * width, width), (width,))
    yield from norm


MODELS = {
    "400x64": Model(((64,),) * 400, 100, repeats=20),
    "tutorial-mlp": Model(((200, 2000), (200,), (20, 200), (20,)), 200, repeats=10),
    "resnet50": Model(tuple(resnet50()), 40),
    "gpt2": Model(tuple(gpt2()), 15),
}
