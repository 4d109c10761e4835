"""fusedoptim.verify finds every kind of wrong bit, nothing where all is right, and changes nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import backend, make_params, of_settings, params_of, randn, set_grads  # noqa: F401

import fusedoptim
from fusedoptim.verification.samples import take_sample

pytestmark = pytest.mark.usefixtures("backend", "one_thread")


def broken(name: str, spoil: Any) -> Any:
    """A class whose steps are right, and then ``spoil(optimizer)`` is called."""
    base: Any = getattr(fusedoptim, name)

    class Broken(base):
        def _update(self, *modes: bool) -> bool:
            zeroed = bool(super()._update(*modes))
            spoil(self)
            return zeroed

    return Broken


@of_settings
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_nothing_is_found_where_all_is_right(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    params = make_params([(4, 33), (), (7,), (0,), (3000,)], dtype)
    params[0].data = params[0].data.t().contiguous().t()
    optimizer = getattr(fusedoptim, name)(params, **options)
    alone = copy.deepcopy(optimizer)
    with fusedoptim.verify(optimizer, params=3, elements=200) as found:
        for seed, zero_grad in enumerate([None, "to_zero", "to_none"]):
            set_grads(optimizer, seed)
            set_grads(alone, seed)
            optimizer.step(zero_grad=zero_grad)
            alone.step(zero_grad=zero_grad)
    assert (found.steps, found.checked, found.differences, found.skipped) == (3, 9, [], {})
    assert str(found).startswith("all bits equal")
    for ours, expected in zip(params_of(optimizer), params_of(alone), strict=True):
        assert torch.equal(ours, expected)
    assert "_update" not in optimizer.__dict__


def _spoil(tensor: str, index: int) -> Any:
    def spoil(optimizer: Any) -> None:
        param = params_of(optimizer)[0]
        state = optimizer.state[param]
        target = {"param": param, "grad": param.grad, **state}[tensor].detach().view(-1)
        target[index] = torch.nextafter(target[index], torch.tensor(torch.inf))

    return spoil


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        *[("Adam", tensor) for tensor in ("param", "grad", "step", "exp_avg", "exp_avg_sq")],
        *[("SGD", tensor) for tensor in ("param", "grad", "momentum_buffer")],
    ],
)
@pytest.mark.parametrize("index", [0, -1])
def test_one_wrong_bit_is_found(name: str, tensor: str, index: int) -> None:
    options = {"momentum": 0.9} if name == "SGD" else {}
    params = make_params([(5000,)])
    optimizer = broken(name, _spoil(tensor, 0 if tensor == "step" else index))(params, **options)
    set_grads(optimizer, 0)
    with fusedoptim.verify(optimizer, elements=150) as found:
        optimizer.step()
    (difference,) = found.differences
    assert (difference.tensor, difference.differ, difference.step) == (tensor, 1, 0)
    assert difference.index == (0 if tensor == "step" or index == 0 else 4999)
    assert difference.got > difference.expected
    assert "1 DIFFERENCES" in str(found)
    assert f"elements of {tensor} differ" in str(found)


@pytest.mark.parametrize(("elements", "ends"), [(5000, 5000), (4999, 64), (150, 64), (10, 5)])
def test_which_elements_are_drawn(elements: int, ends: int) -> None:
    """All of them if there are no more than that; else those at both ends, and any between."""
    param = make_params([(5000,)])[0]
    param.grad = torch.ones(5000)
    index = take_sample("", param, {}, {}, elements, torch.Generator().manual_seed(0)).index
    assert len(index) == elements
    assert torch.equal(index[:ends], torch.arange(ends))
    assert torch.equal(index[-ends:], torch.arange(5000 - ends, 5000))
    if elements > 2 * ends:
        middle = index[ends:-ends]
        assert ends <= middle.min() < 500
        assert 4500 < middle.max() < 5000 - ends


def test_a_sign_of_zero_is_a_difference_and_nan_equals_nan() -> None:
    def negate(optimizer: Any) -> None:
        params_of(optimizer)[0].data.neg_()

    param = torch.nn.Parameter(torch.tensor([0.0, torch.nan]))
    optimizer = broken("SGD", negate)([param], lr=0.0)
    param.grad = torch.zeros(2)
    with fusedoptim.verify(optimizer) as found:
        optimizer.step()
    assert [(difference.differ, difference.index) for difference in found.differences] == [(1, 0)]


def test_a_parameter_that_is_not_updated_or_loses_its_state() -> None:
    def forget(optimizer: Any) -> None:
        optimizer.state.clear()

    optimizer = broken("Adam", forget)(make_params([(9,)]))
    set_grads(optimizer, 0)
    with fusedoptim.verify(optimizer) as found:
        optimizer.step()
    assert {difference.tensor for difference in found.differences} == {"step", "exp_avg", "exp_avg_sq"}


def test_names_of_groups_are_told() -> None:
    optimizer = broken("SGD", lambda self: params_of(self)[1].data.add_(1))(
        [("first", make_params([(2,)])[0]), ("second", make_params([(3,)])[0])]
    )
    set_grads(optimizer, 0)
    with fusedoptim.verify(optimizer) as found:
        optimizer.step()
    assert "'second'" in found.differences[0].param


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_with_grad_scaler(name: str, fused: bool | None) -> None:
    param = make_params([(300,)])[0]
    optimizer = getattr(fusedoptim, name)([param], lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    with fusedoptim.verify(optimizer) as found:
        for factor in (1.0, torch.inf, 2.0):
            scaler.scale((param * randn(param.shape, 1)).sum() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert found.differences == []
    assert found.steps == (3 if fused else 2)


def test_a_step_skipped_on_two_devices() -> None:
    """``found_inf`` is the sum over them."""
    optimizer = fusedoptim.Adam(make_params([(40,)]), fused=True)
    optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(2.0)
    set_grads(optimizer, 0)
    with fusedoptim.verify(optimizer) as found:
        optimizer.step()
    assert (found.steps, found.checked, found.differences) == (1, 1, [])


def test_one_in_so_many_steps_until_stopped() -> None:
    optimizer = fusedoptim.Adam(make_params([(40,)]))
    found = fusedoptim.verify(optimizer, every=3)
    for seed in range(7):
        set_grads(optimizer, seed)
        optimizer.step()
    assert found.steps == 3
    copied = copy.deepcopy(optimizer)
    found.stop()
    for each in (optimizer, copied):
        set_grads(each, 9)
        each.step()
    assert found.steps == 3
    assert torch.equal(params_of(optimizer)[0], params_of(copied)[0])
    again = fusedoptim.verify(optimizer)
    found.stop()  # has ended, and ends no other
    set_grads(optimizer, 10)
    optimizer.step()
    again.stop()
    assert (found.steps, again.steps) == (3, 1)


def test_what_cannot_be_verified_is_told() -> None:
    flat = randn((64,), 0)
    tied = [torch.nn.Parameter(flat[:40]), torch.nn.Parameter(flat[20:])]
    odd = torch.nn.Parameter(randn((4,), 1).to(torch.complex64))
    optimizer = fusedoptim.Adam([{"params": tied}, {"params": [odd]}, {"params": make_params([(5,)]), "foreach": True}])
    with fusedoptim.verify(optimizer) as found:
        for p in params_of(optimizer):
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert found.checked == 0
    assert sum(found.skipped.values()) == 4
    report = str(found)
    assert "nothing was verified" in report
    assert "2 times: it shares memory" in report
    assert "torch's own implementation was asked for" in report


def test_parameters_are_drawn_anew_for_each_step() -> None:
    optimizer = broken("SGD", lambda self: [p.data.add_(1) for p in params_of(self)])(make_params([(3,)] * 12))
    with fusedoptim.verify(optimizer, params=2) as found:
        for seed in range(6):
            set_grads(optimizer, seed)
            optimizer.step()
    drawn = [{difference.param for difference in found.differences if difference.step == k} for k in range(6)]
    assert [len(names) for names in drawn] == [2] * 6
    assert len(set().union(*drawn)) > 4


def test_which_parameters_share_memory() -> None:
    """Neighbours do not; a short one within a long one does, and so does another further on in the long one."""
    flat = randn((64,), 0)
    alone, *shared = flat[:20], flat[20:50], flat[25:30], flat[40:45], flat[50:60], flat[59:]
    optimizer = fusedoptim.SGD([torch.nn.Parameter(x) for x in (alone, *shared)])
    set_grads(optimizer, 0)
    with fusedoptim.verify(optimizer) as found:
        optimizer.step()
    assert (found.checked, found.compared) == (1, 40)  # gradients too
    assert list(found.skipped.values()) == [len(shared)]


def test_a_step_that_raises_leaves_the_verification_in_order() -> None:
    optimizer = fusedoptim.Adam(make_params([(6,)]))
    with fusedoptim.verify(optimizer) as found:
        set_grads(optimizer, 0)
        optimizer.step()
        optimizer.state[params_of(optimizer)[0]].pop("exp_avg")
        with pytest.raises(KeyError, match="exp_avg"):
            optimizer.step()
    assert (found.steps, found.differences) == (1, [])


def test_wrong_use() -> None:
    with pytest.raises(TypeError, match="from_torch"):
        fusedoptim.verify(torch.optim.Adam(make_params()))
    optimizer = fusedoptim.Adam(make_params())
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        fusedoptim.verify(optimizer, every=0)
    with fusedoptim.verify(optimizer), pytest.raises(RuntimeError, match="being verified already"):
        fusedoptim.verify(optimizer)
