"""Every storage and mixture of dtypes: the bits of the reference on each instruction set, layout and thread count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import best_instruction_set, of_instruction_sets
from helpers import need_kernels
from steps import backend, special_values, threads
from storages import BF16, F16, F32, SHAPES, Storage, assert_same, of_settings, of_storages, state_of

import fusedoptim

_known: dict[Any, Any] = {}


def steps(storage: Storage, path: str, count: int = 3, layout: Any = None, **step_options: Any) -> Any:
    """The states after each of some steps, before the last of which a parameter is changed."""
    params = storage.params()
    for param in params if layout else ():
        param.data = layout(param.data)
    optimizer = storage.make(params)
    found = []
    with backend(path):
        for step in range(count):
            storage.set_grads(params, step)
            if step == count - 1:
                params[0].data.mul_(1.5)
                params[0].data.view(-1)[:9] = 0 if layout is None else params[0].data.view(-1)[:9]
            optimizer.step(**step_options)
            found.append(state_of(optimizer))
    return found


@of_instruction_sets
@of_storages
def test_kernels_return_the_bits_of_the_reference(storage: Storage, instruction_set: str) -> None:
    key = repr(storage)
    if key not in _known:
        _known.clear()
        _known[key] = steps(storage, "reference")
    for ours, theirs in zip(steps(storage, instruction_set), _known[key], strict=True):
        assert_same(ours, theirs)


@of_settings
@need_kernels
def test_no_layout_or_number_of_threads_changes_a_bit(storage: Storage) -> None:
    name = best_instruction_set()
    plain = steps(storage, name)
    for count in (1, 2, 3):
        with threads(count):
            assert_same(steps(storage, name)[-1], plain[-1])

    def transposed(x: torch.Tensor) -> torch.Tensor:
        return x.t().contiguous().t() if x.ndim == 2 else x

    params, others = storage.params([(70, 100), (64, 64)]), storage.params([(70, 100), (64, 64)])
    for param in others:
        param.data = transposed(param.data)
    one, other = storage.make(params), storage.make(others)
    for step in range(3):
        storage.set_grads(params, step)
        for mine, theirs in zip(params, others, strict=True):
            theirs.grad = mine.grad.clone()
        with backend(name):
            one.step()
            other.step()
        assert_same(state_of(other), state_of(one))


@of_settings
@pytest.mark.parametrize("path", ["native", "reference"])
def test_the_rest_of_the_loop(storage: Storage, path: str) -> None:
    """Clipping, unscaling and zeroing, in the step and before it."""
    if path == "native":
        path = best_instruction_set()
    params, others = storage.params(), storage.params()
    one, other = storage.make(params, max_grad_norm=0.5), storage.make(others)
    for step in range(3):
        storage.set_grads(params, step)
        storage.set_grads(others, step)
        with backend(path):
            fusedoptim.clip_grad_norm_(others, 0.5)
            one.step(zero_grad="to_zero")
            other.step()
        assert all(not param.grad.any() for param in params)
        assert_same(state_of(one), state_of(other))


@pytest.mark.parametrize("dtypes", [(F32, BF16, BF16), (BF16, F32, F32), (F16, F32, BF16), (F32, F16, F32)], ids=str)
@of_instruction_sets
def test_special_values(dtypes: tuple[torch.dtype, ...], instruction_set: str) -> None:
    """Infinities, subnormals and NaN, of which payloads of float32 must not carry into a number."""
    param, grad, state = dtypes
    found = []
    for path in (instruction_set, "reference"):
        values = special_values(F32).repeat(70)
        values[5] = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(F32)[0]
        storage = Storage("AdamW", param, grad, {"state_dtype": state})
        params = storage.params([values.shape])
        params[0].data.copy_(values)
        optimizer = storage.make(params)
        with backend(path):
            for shift in (1, 3):
                params[0].grad = values.roll(shift).to(grad)
                optimizer.step()
        found.append(state_of(optimizer))
    assert_same(*found)


@pytest.mark.parametrize("rule", ["AdamW", "SGD"])
def test_a_master_steps_as_float32_does(rule: str) -> None:
    """The same gradients: masters are the parameters of a step in float32, and remainders hold the same numbers."""
    storages = [Storage(rule, BF16, BF16, {"master_weights": x}) for x in (True, "remainder")]
    wide = Storage(rule, F32, BF16)
    starts = wide.params(seed=3)
    all_params = [wide.params(seed=3), *(storage.params(seed=3) for storage in storages)]
    for params in all_params:
        for param, start in zip(params, starts, strict=True):
            param.data.copy_(start.data.bfloat16())
    optimizers = [s.make(p) for s, p in zip((wide, *storages), all_params, strict=True)]
    for step in range(5):
        for optimizer, params in zip(optimizers, all_params, strict=True):
            wide.set_grads(params, step)
            optimizer.step()
    for one, master, rest in zip(*all_params, strict=True):
        assert torch.equal(optimizers[1].state[master]["master_param"], one.detach())
        assert torch.equal(rest, master)
        low = optimizers[2].state[rest]["master_param"].int()
        assert torch.equal(((rest.detach().float().view(torch.int32)) + low).view(F32), one.detach())
        assert (master.float() - one).abs().max() <= one.abs().max() * 2**-8


def test_a_changed_parameter_takes_its_master_along() -> None:
    storage = Storage("SGD", BF16, BF16, {"master_weights": True, "momentum": 0.0})
    params = storage.params([(3, 40)])
    optimizer = storage.make(params, lr=0.0)
    storage.set_grads(params, 0)
    optimizer.step()
    with torch.no_grad():
        params[0].clamp_(-0.5, 0.5)
    optimizer.step()
    assert torch.equal(optimizer.state[params[0]]["master_param"], params[0].detach().float())


def test_counts_of_steps_are_what_random_bits_depend_on() -> None:
    """Neither how often the optimizer was made nor how many threads work: seed, step, parameter and place."""
    storage = Storage("SGD", BF16, BF16, {"stochastic_rounding": True})
    results = []
    for seed, first in ((1, 0), (1, 0), (2, 0), (1, 5)):
        params = storage.params([(64, 64), (64, 64)], seed=3)
        params[1].data.copy_(params[0].data)
        optimizer = storage.make(params, seed=seed)
        storage.set_grads(params, 0)
        params[1].grad = params[0].grad.clone()
        optimizer.step()
        optimizer.state[params[0]]["step"].fill_(1.0 + first)
        params[0].grad.fill_(2.0**-9)
        optimizer.step()
        results.append(params)
    assert torch.equal(results[0][0], results[1][0])
    assert not torch.equal(results[0][0], results[2][0])
    assert not torch.equal(results[0][0], results[3][0])
    assert not torch.equal(results[0][0], results[0][1])


@pytest.mark.parametrize("path", ["native", "reference"])
def test_stochastic_rounding_has_the_right_mean(path: str) -> None:
    """A step of a 64th of a unit in the last place: one element in 64 moves by a whole one, within five sigma."""
    count, steps = 1 << 14, 16
    param = torch.nn.Parameter(torch.ones(count, dtype=BF16))
    optimizer = fusedoptim.SGD([param], lr=2.0**-7 / 64, stochastic_rounding=True, seed=11)
    with fusedoptim.set_backend(path):
        for _ in range(steps):
            param.grad = -torch.ones(count, dtype=BF16)
            optimizer.step()
    moved = (param.detach().double() - 1).mean().item() * 2**7
    assert abs(moved - steps / 64) < 5 * (steps / 64 / count) ** 0.5
    assert param.unique().numel() > 2


def test_a_second_moment_in_8_bits_is_never_zero_and_no_step_explodes() -> None:
    generator = torch.Generator().manual_seed(0)
    scale = torch.exp(3 * torch.randn(64, 256, generator=generator))
    params = [torch.nn.Parameter(torch.zeros(64, 256)) for _ in range(2)]
    optimizers = [fusedoptim.Adam([params[0]], lr=1.0, state_dtype="8bit"), fusedoptim.Adam([params[1]], lr=1.0)]
    for _ in range(40):
        grad = scale * torch.randn(64, 256, generator=generator)
        before = [param.detach().clone() for param in params]
        for param, optimizer in zip(params, optimizers, strict=True):
            param.grad = grad.clone()
            optimizer.step()
        moves = [(param.detach() - old).abs() for param, old in zip(params, before, strict=True)]
        assert moves[0].max() < 2 * moves[1].max()
    state = optimizers[0].state[params[0]]
    assert state["exp_avg_sq"].dtype == torch.uint8
    assert (state["exp_avg_sq"] > 0).all()
    assert state["exp_avg_sq_scale"].shape == (64, 1)


def test_small_tensors_stay_in_float32() -> None:
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in ((4095,), (4096,), *SHAPES)]
    optimizer = fusedoptim.AdamW(params, lr=0.1, state_dtype="8bit")
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    for param in params:
        wanted = torch.uint8 if param.numel() >= 4096 else F32
        assert optimizer.state[param]["exp_avg"].dtype == optimizer.state[param]["exp_avg_sq"].dtype == wanted
