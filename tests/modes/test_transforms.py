"""What changes the meaning of operations: autograd's modes, fake tensors, functorch, traces. A step means torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from helpers import of_names
from mode_cases import makers, of_flags, of_steps_before, optimizer_of, without_questions
from outcomes import assert_same_outcome
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import allow_mutation_on_saved_tensors
from torch.func import functionalize, grad, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import Parameter

path = helpers.path
pytestmark = pytest.mark.usefixtures("path", "one_thread")

# Autograd.


def _step_under_a_graph(make: Any, write: Callable[[Any], Any], steps_before: int) -> list[Any]:
    with allow_mutation_on_saved_tensors():
        optimizer, weight = optimizer_of(make, steps_before)
        x, gradient = torch.ones(5, requires_grad=True), weight.grad
        of_weight, of_gradient = (x * weight * weight).sum(), (x * gradient * gradient).sum()
        write(optimizer)
        of_weight.backward()
        of_gradient.backward()
        return [x.grad, weight.grad, weight.detach()]


WRITES = {
    "step": lambda o: o.step(),
    "zero_grad": lambda o: o.zero_grad(set_to_none=False),
    "both": lambda o: (o.step(), o.zero_grad(set_to_none=False)),
}


@of_names
@of_steps_before
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_saved_tensors_are_kept_for_the_backward_pass(
    name: str, write: Callable[[Any], Any], steps_before: int
) -> None:
    assert_same_outcome(name, lambda make: _step_under_a_graph(make, write, steps_before))


def test_saved_tensors_are_kept_from_zeroing_within_the_step() -> None:
    def scenario(make: Any) -> list[Any]:
        def write(optimizer: Any) -> None:
            if type(optimizer).__module__.startswith("fusedoptim"):
                optimizer.step(zero_grad="to_zero")
            else:
                WRITES["both"](optimizer)

        return _step_under_a_graph(make, write, 1)

    assert_same_outcome("SGD", scenario)


@of_names
@of_steps_before
def test_forward_mode(name: str, steps_before: int) -> None:
    """Of the parameter and its state the tangents that torch's operations give them."""
    with forward_ad.dual_level():
        forward_ad.make_dual(torch.ones(1), torch.ones(1)).add_(1)  # torch warns of what it imports when first used

    def scenario(make: Any) -> list[Any]:
        optimizer, weight = optimizer_of(make, 0)
        other = Parameter(torch.ones(5))
        optimizer.param_groups[0]["params"].append(other)
        other.grad = torch.ones(5)
        for _ in range(steps_before):  # after one, but for the mode all is ordinary
            optimizer.step()
        with forward_ad.dual_level():
            weight.grad = forward_ad.make_dual(torch.ones(5), torch.full((5,), 2.0))
            optimizer.step()
            state = [x for x in optimizer.state[weight].values() if x is not None]
            tangents = [forward_ad.unpack_dual(x).tangent for x in (weight, other, *state)]
            return [weight.detach().clone(), *(torch.zeros(0) if x is None else x.detach().clone() for x in tangents)]

    result = assert_same_outcome(name, scenario)
    # torch's SGD detaches its first momentum buffer, and the step is along that
    assert result[1].numel() == (0 if name == "SGD" and steps_before == 0 else 5)


# Tensors without numbers.


def _facts(optimizer: Any, weight: Any) -> list[str]:
    return [
        f"{type(x).__name__} {tuple(x.shape)} {x.dtype} {x.device}"
        for x in (weight, weight.grad, *optimizer.state[weight].values())
    ]


@of_names
@of_flags
@pytest.mark.parametrize("outside", [False, True])
def test_fake_tensors(name: str, flags: dict[str, Any], outside: bool) -> None:
    """As estimators of memory use them: parameters, state and gradients have shapes and no numbers."""
    if outside and flags.get("fused") and name != "SGD":
        pytest.skip("torch raises: it makes the step count outside of the mode, where it is no fake")
    results = []
    for make in makers(name, flags):
        with torch._subclasses.FakeTensorMode() as mode:
            weight = Parameter(torch.ones(5))
            weight.grad = torch.ones(5)
            optimizer = None if outside else make([weight])
        optimizer = make([weight]) if outside else optimizer
        with torch.device("cpu") if outside else mode:
            for _ in range(2):
                optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        results.append(_facts(optimizer, weight))
    assert results[0] == results[1]


@of_names
def test_real_parameters_among_fake_tensors(name: str) -> None:
    """Torch refuses; a step would write to what a trial run is not to touch."""

    def scenario(make: Any) -> None:
        optimizer, _ = optimizer_of(make)
        with torch._subclasses.FakeTensorMode():
            optimizer.step()

    assert assert_same_outcome(name, scenario)[0] is AssertionError


# Transforms of functions.


def _transformed(make: Any, transform: Callable[[Any], Any], after: bool, steps_before: int) -> list[Tensor]:
    optimizer, weight = optimizer_of(make, steps_before)

    def function(x: Tensor) -> Tensor:
        y = (x * weight).sum()
        optimizer.step()
        return y if after else (x * weight).sum()

    y = transform(function)
    return [*(y if isinstance(y, tuple) else (y,)), weight.detach()]


TRANSFORMS = {
    "vmap": lambda f: vmap(f)(torch.ones(3, 5)),
    "functionalize": lambda f: functionalize(f)(torch.ones(5)),
    "grad": lambda f: grad(f)(torch.ones(5)),
    "vjp": lambda f: vjp(f, torch.ones(5))[0],
    "jvp": lambda f: jvp(f, (torch.ones(5),), (torch.ones(5),)),
}


@of_names
@of_steps_before
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_step_in_a_transformed_function(name: str, transform: str, after: bool, steps_before: int) -> None:
    """Torch takes it under vmap; where it would write to what a derivative needs, torch raises: so must we."""
    result = assert_same_outcome(name, lambda make: _transformed(make, TRANSFORMS[transform], after, steps_before))
    assert isinstance(result, tuple) == (transform in ("grad", "vjp", "jvp"))


@of_names
def test_a_gradient_of_a_transformed_function(name: str) -> None:
    """A wrapper of a functorch level looks like a plain tensor."""

    def scenario(make: Any) -> list[Tensor]:
        optimizer, weight = optimizer_of(make)

        def function(x: Tensor) -> Tensor:
            weight.grad = x.squeeze(0)
            optimizer.step()
            return x

        return [vmap(function)(torch.ones(3, 1, 5)), weight.detach()]

    assert assert_same_outcome(name, scenario)[0] is RuntimeError


def _traced(make: Any, tracing_mode: str) -> list[str]:
    optimizer, weight = optimizer_of(make, 0)
    weight.requires_grad_(False)

    def function(gradient: Tensor) -> Tensor:
        weight.grad = gradient
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return gradient * weight

    if tracing_mode == "jit":
        traced = torch.jit.trace(function, (torch.ones(5),), check_trace=False)
        return [node.kind() for node in traced.graph.nodes() if node.kind().startswith("aten::")]
    graph = make_fx(function, tracing_mode=tracing_mode, _allow_non_fake_inputs=True)(torch.ones(5)).graph
    return without_questions([str(node.target) for node in graph.nodes if node.op == "call_function"])


@of_names
@of_flags
@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic", "jit"])
def test_a_trace_holds_torchs_operations(name: str, flags: dict[str, Any], tracing_mode: str) -> None:
    results = []
    for make in makers(name, flags):
        try:
            results.append(_traced(make, tracing_mode))
        except Exception as error:
            results.append([type(error).__name__])
    assert results[0] == results[1] != []
