"""Training loops of many styles: closures, steps inside backward, functional models, flat buffers, global modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import helpers
import pytest
import torch
from helpers import of_names, randn
from outcomes import OPTIONS, assert_same_outcome
from torch import Tensor, nn
from torch.nn import Parameter

import fusedoptim

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend", "one_thread")

X, Y = randn((8, 5), 1), randn((8, 2), 2)


def make_model(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7, dtype=dtype), nn.Tanh(), nn.Linear(7, 2, dtype=dtype))


def loss_of(model: Any) -> Tensor:
    return nn.functional.mse_loss(model(X.to(next(model.parameters()).dtype)), Y.to(next(model.parameters()).dtype))


def values(model: Any) -> list[Tensor]:
    return [p.detach() for p in model.parameters()]


def train(model: Any, optimizer: Any, steps: int = 4) -> list[Tensor]:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    return values(model)


@of_names
@pytest.mark.parametrize("set_to_none", [True, False])
def test_closures_as_for_lbfgs(name: str, set_to_none: bool) -> None:
    """It zeroes, runs backward and returns the loss; the step returns that very tensor, with its graph."""

    def scenario(make: Any) -> Any:
        model = make_model()
        optimizer = make(model.parameters())
        losses = []

        def closure() -> Tensor:
            optimizer.zero_grad(set_to_none)
            loss = loss_of(model)
            loss.backward()
            return loss

        for _ in range(4):
            losses.append(optimizer.step(closure))
        assert losses[0].requires_grad
        assert losses[-1] < losses[0]
        return [loss.detach() for loss in losses] + values(model)

    assert_same_outcome(name, scenario)


@of_names
def test_one_optimizer_per_parameter_steps_inside_backward(name: str) -> None:
    """Hooks after the accumulation of each gradient step and drop it, so that all of them never exist together."""
    results = []
    for module in (fusedoptim, torch.optim):
        model = make_model()
        flags = {} if module is fusedoptim else {"foreach": False}
        optimizers = {p: getattr(module, name)([p], **OPTIONS[name], **flags) for p in model.parameters()}
        alive = []

        def hook(p: Tensor, optimizers: Any = optimizers, model: Any = model, alive: list[int] = alive) -> None:
            alive.append(sum(q.grad is not None for q in model.parameters()))
            optimizers[p].step()
            optimizers[p].zero_grad()

        for p in model.parameters():
            p.register_post_accumulate_grad_hook(hook)
        for _ in range(3):
            loss_of(model).backward()
        assert alive == [1] * 12
        results.append(values(model))
    torch.testing.assert_close(*results, **({"rtol": 0, "atol": 0} if name == "SGD" else {}))


@of_names
def test_gradient_hooks_change_what_the_step_sees(name: str) -> None:
    def scenario(make: Any) -> Any:
        model = make_model()
        model[0].weight.register_hook(lambda grad: grad.clamp(-0.1, 0.1))
        model[2].weight.register_post_accumulate_grad_hook(lambda p: p.grad.mul_(0.5))
        return train(model, make(model.parameters()))

    assert_same_outcome(name, scenario)


@of_names
def test_gradients_from_torch_func(name: str) -> None:
    """``grad`` of a functional call is written to ``p.grad``."""

    def scenario(make: Any) -> Any:
        model = make_model()
        optimizer = make(model.parameters())

        def loss(params: dict[str, Tensor]) -> Tensor:
            return nn.functional.mse_loss(torch.func.functional_call(model, params, (X,)), Y)

        for _ in range(3):
            grads = torch.func.grad(loss)({key: p.detach() for key, p in model.named_parameters()})
            for key, p in model.named_parameters():
                p.grad = grads[key]
            optimizer.step()
        return values(model)

    assert_same_outcome(name, scenario)


@of_names
def test_an_ensemble_under_vmap(name: str) -> None:
    """Stacked parameters of three models in one optimizer, losses under ``vmap``."""

    def scenario(make: Any) -> Any:
        models = []
        for seed in range(3):
            torch.manual_seed(seed)
            models.append(nn.Linear(5, 2))
        params, buffers = torch.func.stack_module_state(models)
        skeleton = nn.Linear(5, 2, device="meta")
        optimizer = make(params.values())

        def loss(params: Any, buffers: Any) -> Tensor:
            return nn.functional.mse_loss(torch.func.functional_call(skeleton, (params, buffers), (X,)), Y)

        for _ in range(3):
            optimizer.zero_grad()
            torch.func.vmap(loss)(params, buffers).sum().backward()
            optimizer.step()
        return [p.detach() for p in params.values()]

    assert_same_outcome(name, scenario)


@of_names
def test_layers_frozen_and_unfrozen_midway(name: str) -> None:
    """A frozen layer whose gradient was dropped stands still, and so does its count of steps."""

    def scenario(make: Any) -> Any:
        model = make_model()
        optimizer = make(model.parameters())
        for epoch in range(6):
            model[0].requires_grad_(epoch not in (1, 2))
            before = model[0].weight.detach().clone()
            train(model, optimizer, 1)
            assert torch.equal(before, model[0].weight) == (epoch in (1, 2))
        steps = [state["step"] for state in optimizer.state.values() if "step" in state]
        return values(model) + steps

    assert_same_outcome(name, scenario)


@of_names
def test_flat_buffers_of_parameters_and_gradients(name: str) -> None:
    """Parameters that are views of one buffer, and gradients of another, as data-parallel wrappers lay them."""
    results = []
    for module in (fusedoptim, torch.optim):
        model = make_model()
        count = sum(p.numel() for p in model.parameters())
        flat, flat_grad = torch.empty(count + 9), torch.zeros(count + 9)
        flat[count:] = 7.0
        start = 0
        for p in model.parameters():
            view = flat[start : start + p.numel()].view(p.shape)
            view.copy_(p.detach())
            p.data, p.grad = view, flat_grad[start : start + p.numel()].view(p.shape)
            start += p.numel()
        flags = {} if module is fusedoptim else {"foreach": False}
        optimizer = getattr(module, name)(model.parameters(), **OPTIONS[name], **flags)
        for _ in range(4):
            flat_grad.zero_()
            loss_of(model).backward()
            optimizer.step()
        assert flat[count:].eq(7).all()
        assert model[0].weight.data_ptr() == flat.data_ptr()
        results.append(flat)
        optimizer.zero_grad(set_to_none=False)
        assert not flat_grad.any()
    torch.testing.assert_close(*results, **({"rtol": 0, "atol": 0} if name == "SGD" else {}))


@of_names
def test_parameters_set_from_a_vector(name: str) -> None:
    """``vector_to_parameters`` makes each ``p.data`` a view of the vector."""

    def scenario(make: Any) -> Any:
        model = make_model()
        optimizer = make(model.parameters())
        train(model, optimizer, 2)
        vector = nn.utils.parameters_to_vector(model.parameters()).detach() * 0.5
        nn.utils.vector_to_parameters(vector, model.parameters())
        before = vector.clone()
        result = train(model, optimizer, 2)
        assert not torch.equal(vector, before)
        assert torch.equal(vector, nn.utils.parameters_to_vector(result))
        return result

    assert_same_outcome(name, scenario)


PARAMETRIZE: dict[str, Callable[[Any], Any]] = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
}


@of_names
@pytest.mark.parametrize("parametrize", PARAMETRIZE.values(), ids=PARAMETRIZE)
def test_parametrizations(name: str, parametrize: Callable[[Any], Any]) -> None:
    def scenario(make: Any) -> Any:
        model = make_model(torch.float64)  # an orthogonal map enlarges last bits
        parametrize(model[0])
        return train(model, make(model.parameters()))

    assert_same_outcome(name, scenario)


# Global modes.


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


MODES: dict[str, Callable[[], Any]] = {
    "save_on_cpu": torch.autograd.graph.save_on_cpu,
    "anomaly": torch.autograd.detect_anomaly,
    "deterministic": deterministic,
    "default dtype": default_dtype,
    "default device meta": default_device,
    "device meta": lambda: torch.device("meta"),
    "no_grad around the step": torch.no_grad,
}


@of_names
@pytest.mark.parametrize("mode", MODES)
def test_global_modes(name: str, mode: str) -> None:
    """Under each of them, state is made where and as torch makes it."""

    def scenario(make: Any) -> Any:
        model = make_model(torch.float64 if mode == "default dtype" else torch.float32)
        with MODES[mode]():
            optimizer = make(model.parameters())
            with torch.enable_grad():
                train(model, optimizer, 3)
        state = [x for state in optimizer.state.values() for x in state.values()]
        assert state
        return values(model) + state  # compared with dtype and device

    assert_same_outcome(name, scenario)


@of_names
def test_the_profiler_sees_the_labels_of_torch(name: str) -> None:
    labels = []
    for module in (fusedoptim, torch.optim):
        optimizer = getattr(module, name)([Parameter(torch.ones(3))])
        optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            optimizer.step()
            optimizer.zero_grad()
            optimizer.zero_grad(set_to_none=False)
        events = profile.key_averages()
        labels.append(sorted((e.key, e.count) for e in events if e.key.startswith("Optimizer.")))
    assert labels[0] == labels[1] == [(f"Optimizer.step#{name}.step", 1), (f"Optimizer.zero_grad#{name}.zero_grad", 2)]
