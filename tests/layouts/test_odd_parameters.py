"""Parameters without values, of inference mode, moved to another dtype, or met twice: as torch's optimizers do."""

from __future__ import annotations

from typing import Any

import helpers
import pytest
import torch
from helpers import assert_optimizers_match, everything_of, make_params, of_names, params_of
from outcomes import OPTIONS, assert_same_outcome, outcomes
from torch import nn
from torch.nn import Parameter

import fusedoptim

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend", "one_thread")


# No values, or not yet.


@of_names
def test_a_module_on_the_meta_device(name: str) -> None:
    def scenario(make: Any) -> Any:
        model = nn.Linear(3, 2, device="meta")
        optimizer = make(model.parameters())
        for to_none in (False, True):
            model(torch.ones(1, 3, device="meta")).sum().backward()
            optimizer.step()
            optimizer.zero_grad(to_none)
        return [(key, x.device.type, x.dtype, x.shape) for s in optimizer.state.values() for key, x in s.items()]

    ours, theirs = outcomes(name, scenario)
    assert ours == theirs
    assert ours[0]


@of_names
def test_a_lazy_layer(name: str) -> None:
    """Before its first input it has no gradient, and is passed over; afterwards it is like any."""

    def scenario(make: Any) -> Any:
        model = nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(2))
        optimizer = make(model.parameters())
        optimizer.zero_grad()
        optimizer.step()
        for _ in range(2):
            model(torch.ones(3, 5)).square().sum().backward()
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    assert_same_outcome(name, scenario)


# Inference mode.


@of_names
def test_inference_tensors_are_updated(name: str) -> None:
    """Torch refuses to, outside inference mode; the kernels see memory alone, and the reference does as they do."""

    def scenario(make: Any) -> Any:
        with torch.inference_mode():
            model = nn.Linear(3, 2)
        optimizer = make(model.parameters())
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        return [p.detach().clone() for p in model.parameters()]

    ours, theirs = outcomes(name, scenario)
    assert theirs[0][0] is RuntimeError
    assert "Inplace update to inference tensor" in theirs[0][1]
    torch.manual_seed(0)
    plain = nn.Linear(3, 2)
    optimizer = getattr(fusedoptim, name)(plain.parameters(), **OPTIONS[name])
    for p in plain.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    torch.testing.assert_close(ours[0], [p.detach() for p in plain.parameters()], rtol=0, atol=0)


@of_names
def test_state_made_in_inference_mode_serves_outside(name: str) -> None:
    twins = [getattr(fusedoptim, name)(make_params(), **OPTIONS[name]) for _ in range(2)]
    for seed in range(3):
        for optimizer, mode in zip(twins, (seed == 0, False), strict=True):
            helpers.set_grads(optimizer, seed)
            with torch.inference_mode(mode):
                optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    assert_optimizers_match(*twins, exact=True)


# Parameters that move.


def moved(name: str, module: Any, to: torch.dtype, reload: bool, **flags: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = getattr(module, name)(model.parameters(), **OPTIONS[name], **flags)
    for dtype in (torch.float32, to):
        model.to(dtype)
        if reload:
            optimizer.load_state_dict(optimizer.state_dict())
        model(torch.ones(4, 3, dtype=dtype)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


@of_names
def test_a_model_moved_to_another_dtype_between_steps(name: str) -> None:
    """Its state stays behind. Torch's SGD computes with both dtypes and Adam raises, and so do ours for float64."""
    to = torch.float64
    if name == "SGD":
        ours, theirs = moved(name, fusedoptim, to, False), moved(name, torch.optim, to, False, foreach=False)
        assert_optimizers_match(ours, theirs)
    else:
        errors = []
        for module, flags in ((fusedoptim, {}), (torch.optim, {"foreach": False})):
            with pytest.raises(RuntimeError, match="expected dtype float for `end` but got dtype") as caught:
                moved(name, module, to, False, **flags)
            errors.append(str(caught.value))
        assert errors[0] == errors[1]
    with pytest.raises(RuntimeError, match=r"fused=True.*parameter 0 of group 0.*its state has another dtype"):
        moved(name, fusedoptim, to, False, fused=True)


@of_names
@pytest.mark.parametrize("reload", [False, True])
def test_a_model_in_bfloat16_keeps_its_state_in_float32(name: str, reload: bool, kernels_only: None) -> None:
    """Also where it is loaded anew, for which torch rounds it to the dtype of the parameters."""
    ours, theirs = moved(name, fusedoptim, torch.bfloat16, reload), moved(name, torch.optim, torch.float32, False)
    states = [x for state in ours.state.values() for key, x in state.items() if key != "step"]
    assert states
    assert all(x.dtype == torch.float32 for x in states)
    assert all(p.dtype == torch.bfloat16 for p in params_of(ours))
    torch.testing.assert_close(params_of(ours), params_of(theirs), rtol=2**-6, atol=2**-8, check_dtype=False)


@of_names
def test_loading_its_own_state_moves_it_along(name: str, kernels_only: None) -> None:
    """``optimizer.load_state_dict(optimizer.state_dict())`` gives the state the dtype of its parameters."""
    to = torch.float64
    ours = moved(name, fusedoptim, to, True)
    theirs = moved(name, torch.optim, to, True, foreach=False)
    states = [x for state in ours.state.values() for key, x in state.items() if key != "step"]
    assert states
    assert all(x.dtype == to for x in states)
    # Of the step before in float32 a last bit remains.
    torch.testing.assert_close(params_of(ours), params_of(theirs), rtol=2e-6, atol=2e-7)


def test_nothing_is_written_where_the_state_has_another_dtype() -> None:
    optimizer = moved("Adam", fusedoptim, torch.float32, False, fused=True)
    params_of(optimizer)[1].data = params_of(optimizer)[1].data.double()
    for p in params_of(optimizer):
        p.grad = torch.ones_like(p)
    before = everything_of(optimizer)
    with pytest.raises(RuntimeError, match="its state has another dtype"):
        optimizer.step()
    assert everything_of(optimizer) == before


# Twice in a model, twice in the list.


@of_names
def test_tied_weights(name: str) -> None:
    """One Parameter in two modules: ``model.parameters()`` gives it once, and its gradient is the sum."""

    def scenario(make: Any) -> Any:
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        model[2].weight = model[0].weight
        assert len(list(model.parameters())) == 3
        optimizer = make(model.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
        assert model[2].weight is model[0].weight
        return [p.detach() for p in model.parameters()]

    assert_same_outcome(name, scenario)


@of_names
def test_a_parameter_in_two_groups_is_torchs_error(name: str) -> None:
    p = Parameter(torch.ones(3))
    result = assert_same_outcome(name, lambda make: make([{"params": [p]}, {"params": [p]}]))
    assert result == (ValueError, "some parameters appear in more than one parameter group")
