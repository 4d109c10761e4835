"""GradScaler in every mode that training scripts use, beside torch's optimizers, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from helpers import Twins, assert_optimizers_match, make_params, of_names, params_of, randn
from torch import Tensor, nn

import fusedoptim

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend", "one_thread")

of_fused = pytest.mark.parametrize("fused", [None, False, True], ids=["default", "fused=False", "fused=True"])


def scaler_of(**options: Any) -> Any:
    return torch.amp.GradScaler("cpu", **{"init_scale": 8.0, "growth_interval": 2, **options})


def twins_of(name: str, fused: bool | None, **options: Any) -> Twins:
    """Torch's for-loop, which scaler unscales for, beside ours."""
    if name == "SGD":
        options = {"momentum": 0.9, **options}
    return Twins(name, {"lr": 0.1, "fused": fused, **options})


def loss_of(optimizer: Any, seed: int, overflow: bool = False) -> Tensor:
    """A loss whose gradients differ from seed to seed."""
    return sum(  # type: ignore[return-value]
        (p * (torch.inf if overflow else randn(p.shape, 100 * seed + i, p.dtype))).sum()
        for i, p in enumerate(params_of(optimizer))
    )


def assert_grads_match(twins: Twins) -> None:
    for p, q in zip(params_of(twins.ours), params_of(twins.theirs), strict=True):
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or torch.equal(p.grad, q.grad)


@of_names
@of_fused
def test_scale_grows_and_backs_off_as_with_torch(name: str, fused: bool | None) -> None:
    twins = twins_of(name, fused)
    overflows = {0, 1, 6, 11, 12, 13, 20}
    scales: list[list[float]] = []
    for optimizer in twins:
        scaler = scaler_of(growth_factor=4.0, backoff_factor=0.25)
        scales.append([])
        for seed in range(25):
            optimizer.zero_grad()
            scaler.scale(loss_of(optimizer, seed, seed in overflows)).backward()
            scaler.step(optimizer)
            scaler.update()
            scales[-1].append(scaler.get_scale())
    assert scales[0] == scales[1]
    assert len(set(scales[0])) > 4
    assert_optimizers_match(*twins)


@of_names
@of_fused
def test_a_first_step_that_overflows_never_was(name: str, fused: bool | None) -> None:
    """No state appears, and the next step is the first. Torch's fused SGD leaves a buffer there that counts as old."""
    twins = twins_of(name, fused)
    before = [p.detach().clone() for p in params_of(twins.ours)]
    for optimizer in twins:
        scaler = scaler_of()
        for seed in range(3):
            optimizer.zero_grad()
            scaler.scale(loss_of(optimizer, seed, overflow=seed == 0)).backward()
            scaler.step(optimizer)
            scaler.update()
            if seed == 0:
                assert all(map(torch.equal, params_of(optimizer), before))
                assert not any(optimizer.state.values())
    assert not torch.equal(params_of(twins.ours)[0], before[0])
    assert_optimizers_match(*twins)


@of_fused
def test_several_optimizers_under_one_scaler_of_which_one_overflows(fused: bool | None) -> None:
    """The one without overflow takes its step; the scale backs off for both."""
    pairs = [twins_of("SGD", fused), twins_of("Adam", fused)]
    scales = []
    for optimizers in zip(*pairs, strict=True):
        scaler = scaler_of()
        for seed, overflowing in enumerate([None, 0, 1, None]):
            for i, optimizer in enumerate(optimizers):
                optimizer.zero_grad()
                scaler.scale(loss_of(optimizer, 10 * seed + i, overflowing == i)).backward()
            before = [params_of(optimizer)[0].detach().clone() for optimizer in optimizers]
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
            after = [params_of(optimizer)[0] for optimizer in optimizers]
            moved = [not torch.equal(a, b) for a, b in zip(after, before, strict=True)]
            assert moved == [overflowing != 0, overflowing != 1]
            scales.append(scaler.get_scale())
    assert scales[:4] == scales[4:]
    for twins in pairs:
        assert_optimizers_match(*twins)
        assert_grads_match(twins)


@of_fused
def test_several_losses_with_gradients_accumulated(fused: bool | None) -> None:
    twins = twins_of("Adam", fused)
    for optimizer in twins:
        scaler = scaler_of()
        for seed in range(4):
            optimizer.zero_grad(set_to_none=seed % 2 == 0)
            for micro in range(3):
                first, second = (loss_of(optimizer, 10 * seed + 2 * micro + k) / 3 for k in range(2))
                scaler.scale(first).backward(retain_graph=True)
                scaler.scale(second).backward()
            scaler.step(optimizer)
            scaler.update()
    assert_optimizers_match(*twins)
    assert_grads_match(twins)


CLIPS: dict[str, Callable[[list[Tensor]], Any]] = {
    "norm": lambda params: nn.utils.clip_grad_norm_(params, 0.5),
    "norm, for-loop": lambda params: nn.utils.clip_grad_norm_(params, 0.5, foreach=False),
    "value": lambda params: nn.utils.clip_grad_value_(params, 0.3),
}


@of_names
@of_fused
@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
def test_clipping_after_unscaling(name: str, fused: bool | None, clip: Callable[[list[Tensor]], Any]) -> None:
    twins = twins_of(name, fused)
    norms: list[list[float]] = []
    for optimizer in twins:
        scaler = scaler_of()
        norms.append([])
        for seed, overflow in enumerate([False, True, False]):
            optimizer.zero_grad()
            scaler.scale(loss_of(optimizer, seed, overflow)).backward()
            scaler.unscale_(optimizer)
            clip(params_of(optimizer))
            if not overflow:
                norms[-1].append(max(float(p.grad.abs().max()) for p in params_of(optimizer) if p.numel()))
            scaler.step(optimizer)
            scaler.update()
    assert norms[0] == norms[1]
    assert max(norms[0]) <= 0.5, "clipped"
    assert_optimizers_match(*twins)
    assert_grads_match(twins)


@of_fused
def test_zeroing_inside_a_scaled_step(fused: bool | None) -> None:
    for how, overflow in [("to_none", False), ("to_zero", False), ("to_none", True), ("to_zero", True)]:
        twins = twins_of("Adam", fused)
        for optimizer in twins:
            scaler = scaler_of()
            scaler.scale(loss_of(optimizer, 3, overflow)).backward()
            if optimizer is twins.ours:
                scaler.step(optimizer, zero_grad=how)
            else:
                scaler.step(optimizer)
                optimizer.zero_grad(set_to_none=how == "to_none")
            scaler.update()
        skipped_by_the_scaler = overflow and not fused  # which then does not call the optimizer at all
        if not skipped_by_the_scaler:
            assert_grads_match(twins)
        assert_optimizers_match(*twins)


@of_fused
def test_state_dict_of_the_scaler_goes_on_where_it_was(fused: bool | None) -> None:
    twins = twins_of("Adam", fused)
    results = []
    for optimizer in twins:
        scaler = scaler_of()
        for seed in range(6):
            optimizer.zero_grad()
            scaler.scale(loss_of(optimizer, seed, seed == 4)).backward()
            scaler.step(optimizer)
            scaler.update()
            saved = scaler.state_dict(), optimizer.state_dict()
            scaler = scaler_of(init_scale=2.0)
            scaler.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        results.append(scaler.state_dict())
    assert results[0] == results[1]
    assert_optimizers_match(*twins)


@of_fused
def test_disabled_scaler_passes_everything_on(fused: bool | None) -> None:
    twins = twins_of("SGD", fused)
    for optimizer in twins:
        scaler = scaler_of(enabled=False)
        optimizer.zero_grad()
        scaler.scale(loss_of(optimizer, 1)).backward()
        scaler.unscale_(optimizer)
        assert scaler.step(optimizer, lambda: 7.0) == 7.0
        scaler.update()
    assert_optimizers_match(*twins)
    if fused is not False:
        scaler.step(twins.ours, zero_grad="to_none")
        assert all(p.grad is None for p in params_of(twins.ours))


@pytest.mark.parametrize("fused", [None, True])
def test_misuse_raises_what_torch_raises(fused: bool | None) -> None:
    def step_twice(scaler: Any, optimizer: Any) -> None:
        scaler.step(optimizer)
        scaler.step(optimizer)

    def unscale_twice(scaler: Any, optimizer: Any) -> None:
        scaler.unscale_(optimizer)
        scaler.unscale_(optimizer)

    def with_closure(scaler: Any, optimizer: Any) -> None:
        scaler.step(optimizer, closure=lambda: 0.0)

    for misuse in (step_twice, unscale_twice, with_closure):
        messages = []
        for module in (fusedoptim, torch.optim):
            optimizer = module.Adam(make_params(), fused=fused)
            scaler = scaler_of()
            scaler.scale(loss_of(optimizer, 1)).backward()
            with pytest.raises(RuntimeError) as caught:
                misuse(scaler, optimizer)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


@of_names
def test_float16_parameters_are_unscaled_in_the_step(name: str) -> None:
    """``unscale_`` refuses float16 gradients; the fused step divides them itself, as torch's fused Adam does."""
    extra = {"momentum": 0.9} if name == "SGD" else {"eps": 1e-3}
    scaled, plain = (
        getattr(fusedoptim, name)(make_params(dtype=torch.float16), lr=0.1, fused=True, **extra) for _ in range(2)
    )
    scaler = scaler_of(growth_interval=100)
    for seed in range(4):
        for optimizer in (scaled, plain):
            optimizer.zero_grad()
        scaler.scale(loss_of(scaled, seed, seed == 2)).backward()
        scaler.step(scaled)
        scaler.update()
        if seed != 2:
            loss_of(plain, seed).backward()
            plain.step()
    assert_optimizers_match(scaled, plain, exact=True)  # 8 and 4 are powers of two: dividing by them rounds nothing
    unfused = getattr(fusedoptim, name)(make_params(dtype=torch.float16), lr=0.1)
    scaler.scale(loss_of(unfused, 1)).backward()
    with pytest.raises(ValueError, match="unscale FP16 gradients"):
        scaler.step(unfused)
