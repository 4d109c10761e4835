"""torch.compile around the model, and around a whole training step that holds the optimizer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import NAMES, randn
from outcomes import OPTIONS
from torch import Tensor, nn

import fusedoptim

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # The compiler looks at the gradient of a loss. A function that it cannot follow gives warnings of other kinds.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]

X, Y = randn((8, 5), 1), randn((8, 2), 2)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make_model() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))


def make(module: Any, name: str, model: Any) -> Any:
    return getattr(module, name)(model.parameters(), **OPTIONS[name], **({} if module is fusedoptim else FOR_LOOP))


FOR_LOOP = {"foreach": False, "fused": False}


def values(model: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def train(name: str, module: Any = fusedoptim, steps: int = 4, backend: str | None = None, **how: Any) -> Tensor:
    """Train a model, compiled where a backend is named."""
    model = make_model()
    optimizer = make(module, name, model)
    called = model if backend is None else torch.compile(model, backend=backend)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(called(X), Y).backward()
        optimizer.step(**how)
    return values(model)


@pytest.mark.parametrize(("name", "backend"), [("SGD", "eager"), ("Adam", "aot_eager")])
def test_a_compiled_model(name: str, backend: str) -> None:
    """The compiled graph reads the parameters that the step has changed in place: same bits as without."""
    assert torch.equal(train(name, backend=backend), train(name))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_a_model_compiled_by_inductor() -> None:
    """Its gradients may differ in last bits, so it stands beside torch's optimizer on the same compiled model."""
    ours, theirs = (train("SGD", module, backend="inductor") for module in (fusedoptim, torch.optim))
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(ours, train("SGD"))


def compiled_steps(name: str, module: Any, zeroing: str, **options: Any) -> tuple[Tensor, list[float]]:
    """A training step compiled as a whole."""
    model = make_model()
    optimizer = make(module, name, model)

    def step(x: Tensor, y: Tensor) -> Tensor:
        if zeroing == "before":
            optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        if zeroing == "within":
            optimizer.step(zero_grad="to_none")
        else:
            optimizer.step()
        if zeroing == "after":
            optimizer.zero_grad(set_to_none=False)
        return loss.detach()

    compiled = torch.compile(step, **options)
    losses = [float(compiled(X, Y)) for _ in range(4)]
    return values(model), losses


@pytest.mark.parametrize(("name", "zeroing"), [*zip(NAMES, ["before", "after", "within"], strict=True)])
def test_a_whole_training_step_compiled(name: str, zeroing: str) -> None:
    """The graph breaks at the optimizer, which runs as always: same bits as without a compiler."""
    compiled, losses = compiled_steps(name, fusedoptim, zeroing, backend="aot_eager")
    assert torch.equal(compiled, train(name))
    assert losses[-1] < losses[0]


def test_fullgraph_is_refused_as_with_torchs_optimizers() -> None:
    """The compiler breaks the graph at either; for ours its error names the function that it may not enter."""
    for module, match in ((fusedoptim, "_outside_graph"), (torch.optim, "graph_break")):
        optimizer = make(module, "Adam", make_model())
        with pytest.raises(torch._dynamo.exc.Unsupported, match=match):
            torch.compile(lambda o=optimizer: o.step(), backend="eager", fullgraph=True)()


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_only_the_step_compiled(name: str) -> None:
    """``torch.compile(optimizer.step)``, as torch's tutorial has it; numbers and hooks as without."""
    results = []
    for compiled in (False, True):
        model = make_model()
        optimizer = make(fusedoptim, name, model)
        calls: list[Any] = []
        optimizer.register_step_post_hook(lambda *args, calls=calls: calls.append(args[1:]))
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(X), Y).backward()
            step()
        assert len(calls) == 3
        results.append(values(model))
    assert torch.equal(*results)


def test_compiled_autograd() -> None:
    """Backward compiled as well: the gradients that it writes are those that the step reads."""
    model = make_model()
    optimizer = make(fusedoptim, "SGD", model)
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(X), Y)
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            loss.backward()
        optimizer.step()
    assert torch.equal(values(model), train("SGD"))


def test_a_scheduler_with_a_compiled_step() -> None:
    """A Tensor lr, as advised for compiled optimizers, and a float one: both are read at each step."""
    for lr in (0.1, torch.tensor(0.1)):
        results = []
        for compiled in (False, True):
            model = make_model()
            optimizer = fusedoptim.SGD(model.parameters(), lr=lr.clone() if isinstance(lr, Tensor) else lr)
            schedule = fusedoptim.lr_scheduler.ExponentialLR(optimizer, 0.5)

            def step(optimizer: Any = optimizer, schedule: Any = schedule, model: Any = model) -> None:
                optimizer.zero_grad()
                nn.functional.mse_loss(model(X), Y).backward()
                optimizer.step()

            run = torch.compile(step, backend="eager") if compiled else step
            for _ in range(4):
                run()
                schedule.step()
            results.append(values(model))
        assert torch.equal(*results)
