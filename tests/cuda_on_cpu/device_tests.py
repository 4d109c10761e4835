"""What a step does on a device, beyond the bits: tables, launches, streams, graphs, numbers that stay there, failures.

Run by ``test_end_to_end.py``, with the plugin ``posed``. Work is queued and done only when ``finish`` is called; so
what the host does too early, or waits for, shows.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import helpers
import pytest
import torch
from cases import DTYPES, Case, everything, of_cases, of_dtypes, one_per_class
from helpers import everything_of, make_params, params_of, randn, torch_steps
from posed import HOST, device_of, lib, place
from steps import assert_same, numbers, set_gradients, snapshot
from torch import Tensor
from torch.nn import Parameter

import fusedoptim
from fusedoptim.clipping import device_norm
from fusedoptim.reference.rule import options_of

MEMORY, CONFIGURATION, OLD_DRIVER, NO_IMAGE = 2, 9, 35, 209  # codes of cudaError_t
SHAPES = [(5,), (8192 + 3,), (3, 4), (0,), (17,)]


_alive: list[Any] = []  # what queued work may read: torch's CUDA allocator reuses memory in the order of the stream


@pytest.fixture(autouse=True)
def _queued(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    lib.stand_in_set_eager(0)
    to, empty = Tensor.to, device_norm.empty
    monkeypatch.setattr(Tensor, "to", lambda *args, **named: _alive.append(to(*args, **named)) or _alive[-1])
    monkeypatch.setattr(device_norm, "empty", lambda *args: _alive.append(empty(*args)) or _alive[-1])
    yield
    lib.stand_in_reset()
    _alive.clear()


def set_grads(optimizer: Any, seed: int) -> None:
    """New gradients, each in memory of its own until the end of the test."""
    helpers.set_grads(optimizer, seed)
    _alive.append([p.grad for p in params_of(optimizer)])


def finish() -> None:
    lib.stand_in_finish()


@contextmanager
def on_host() -> Iterator[None]:
    """Tensors lie on the host, so that the CPU kernels take the step."""
    lib.posing_set_default(HOST)
    try:
        yield
    finally:
        lib.posing_set_default(0)


def launches() -> list[Any]:
    return [lib.stand_in_launch(i) for i in range(lib.stand_in_launch_count())]


def uploads() -> int:
    return int(lib.stand_in_count(b"uploads"))


def waits() -> int:
    return int(lib.stand_in_count(b"waits"))


def twins(make: Callable[[list[Parameter]], Any], dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """An optimizer for the device and one for the host, on equal parameters."""
    return make(make_params(SHAPES, dtype)), make(make_params(SHAPES, dtype))


def step_both(device: Any, host: Any, seed: int, **options: Any) -> None:
    """A step of each with equal gradients. The device's is queued."""
    set_grads(device, seed)
    set_grads(host, seed)
    device.step(**options)
    with on_host():
        host.step(**options)


@contextmanager
def nothing_read(monkeypatch: pytest.MonkeyPatch, waiting: int = 0) -> Iterator[None]:
    """Reading a number from a device on the host would wait for it, so it fails; and nothing else waits either."""

    def refuse(self: Tensor) -> Any:
        pytest.fail("the host reads a number from the device")

    before = waits()
    with monkeypatch.context() as patch:
        for name in ("item", "__float__", "__bool__", "tolist"):
            patch.setattr(Tensor, name, refuse)
        yield
    assert waits() == before + waiting


# ---- launches and tables --------------------------------------------------------------------------------------------


def test_400_tensors_are_one_launch_and_one_upload() -> None:
    def make() -> Any:
        return fusedoptim.AdamW([Parameter(randn((64,), i)) for i in range(400)])

    device, host = make(), make()
    for seed in (1, 2, 3):
        for p, q in zip(params_of(device), params_of(host), strict=True):
            p.grad = p.grad if p.grad is not None else torch.zeros_like(p)
            p.grad.copy_(randn(p.shape, 1000 * seed))
            q.grad = p.grad.clone()
        device.step()
        finish()
        with on_host():
            host.step()
    assert [launch.threads for launch in launches()] == [256] * 3
    assert uploads() == 1
    assert_same(snapshot(device), snapshot(host))


@of_dtypes
@of_cases(everything())
@pytest.mark.parametrize("order", [1, 7])
def test_bits_of_the_host_in_any_order_of_threads(case: Case, dtype: torch.dtype, order: int) -> None:
    lib.stand_in_set_order(order)
    try:
        device, host = twins(case.make, dtype)
        for seed in (1, 2):
            step_both(device, host, seed)
        finish()
        assert_same(snapshot(device), snapshot(host))
    finally:
        lib.stand_in_set_order(0)


def test_one_launch_per_bucket() -> None:
    groups = [
        {"params": make_params([(5,), (6,)])},
        {"params": make_params([(7,)])},  # equal numbers: the same bucket
        {"params": make_params([(8,)]), "weight_decay": 0.1},
        {"params": make_params([(9,)]), "lr": 0.5},
        {"params": make_params([(9,), (3,)], torch.bfloat16)},
    ]
    optimizer = fusedoptim.Adam(groups, lr=0.1)
    set_grads(optimizer, 1)
    optimizer.step()
    assert not launches()
    finish()
    assert len(launches()) == 4


@pytest.mark.parametrize("period", [1, 2, 3])
@pytest.mark.parametrize("zeroes", [False, True])
def test_new_addresses_are_uploaded_and_known_ones_are_not(period: int, zeroes: bool) -> None:
    """Gradients in several sets of buffers, as allocators give them in turn: known ones need no upload, nor memory."""
    shapes = [(5,), (7, 3), (6,)]
    groups = [{"params": make_params(shapes), "weight_decay": i / 8} for i in range(3)]  # three launches
    optimizer = fusedoptim.AdamW(groups, capturable=True)
    sets = [[torch.ones_like(p) for p in params_of(optimizer)] for _ in range(period)]

    def step(grads: list[Tensor]) -> int:
        before = uploads()
        for p, grad in zip(params_of(optimizer), grads, strict=True):
            p.grad = grad
        optimizer.step()
        if zeroes:
            optimizer.zero_grad(set_to_none=False)
        finish()
        return uploads() - before

    for i in range(period):
        assert step(sets[i]) == 3 + zeroes
    allocated = lib.stand_in_count(b"allocated")
    for i in range(4 * period):
        assert step(sets[i % period]) == 0
    sets[0][0] = torch.ones_like(sets[0][0])
    assert step(sets[0]) == 1 + zeroes
    for _ in range(12):  # and always new ones take memory for a few steps only
        sets.append([torch.ones_like(p) for p in params_of(optimizer)])
        assert step(sets[-1]) == 3 + zeroes
    assert lib.stand_in_count(b"allocated") <= allocated + 5 * (3 + zeroes)


def test_groups_with_equal_numbers_share_a_launch() -> None:
    groups = [{"params": make_params([(5,)])}, {"params": make_params([(6,)])}]
    optimizer = fusedoptim.Adam(groups, lr=place(torch.tensor(0.1), 0), fused=True)
    set_grads(optimizer, 1)
    optimizer.step()
    finish()
    assert len(launches()) == 1
    optimizer.param_groups[1]["lr"] = place(torch.tensor(0.1), 0)  # somewhere else, so it may become another number
    optimizer.step()
    finish()
    assert len(launches()) == 3


@of_cases(one_per_class())
def test_many_steps_in_the_queue(case: Case) -> None:
    """The host runs ahead, with new gradients each time: no table and no staging memory is overwritten too early."""
    device, host = twins(case.make)
    for seed in range(1, 9):
        step_both(device, host, seed)
    assert not launches()
    finish()
    assert len(launches()) >= 8
    assert_same(snapshot(device), snapshot(host))


def test_streams_that_come_and_go_leave_a_bounded_number_of_tables() -> None:
    """No stream may overwrite another's table, so those of streams that are not used any more are given back."""
    device, host = (fusedoptim.SGD(make_params([(5,)]), lr=0.1, momentum=0.9) for _ in range(2))
    before = lib.stand_in_count(b"allocated")
    for seed in range(300):
        lib.posing_set_stream(0, lib.stand_in_new_stream(0))
        step_both(device, host, seed)
        finish()
    assert 250 <= lib.stand_in_count(b"allocated") - before <= 256
    assert_same(snapshot(device), snapshot(host))


def test_nothing_is_left_behind() -> None:
    before = [lib.stand_in_count(what) for what in (b"allocated", b"pinned")]
    optimizer = fusedoptim.Adam(make_params(SHAPES))
    set_grads(optimizer, 1)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    finish()
    assert [lib.stand_in_count(what) for what in (b"allocated", b"pinned")] != before
    del optimizer
    gc.collect()
    assert [lib.stand_in_count(what) for what in (b"allocated", b"pinned")] == before


def test_zero_grad_is_one_launch() -> None:
    optimizer = fusedoptim.SGD(make_params([*SHAPES, (70_000,)]), lr=0.1)
    set_grads(optimizer, 1)
    grads = [p.grad for p in params_of(optimizer)]
    shifted = torch.full((1 + 33,), 7.0)
    params_of(optimizer)[4].grad = shifted[1:18]
    optimizer.zero_grad(set_to_none=False)
    assert grads[0].count_nonzero() > 0
    finish()
    assert len(launches()) == 1
    assert all(p.grad.count_nonzero() == 0 for p in params_of(optimizer))
    assert shifted[[0, *range(18, 34)]].tolist() == [7.0] * 17


def test_empty_parameters_count_their_steps() -> None:
    (p,) = params = make_params([(0,)])
    optimizer = fusedoptim.Adam(params, fused=True)
    for count in (1, 2):
        set_grads(optimizer, count)
        optimizer.step()
        finish()
        assert optimizer.state[p]["step"].item() == count


# ---- streams and devices --------------------------------------------------------------------------------------------


def test_the_current_stream() -> None:
    stream = lib.stand_in_new_stream(0)
    optimizer = fusedoptim.SGD(make_params(SHAPES), lr=0.1)
    set_grads(optimizer, 1)
    optimizer.step()
    lib.posing_set_stream(0, stream)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    finish()
    assert sorted(launch.stream for launch in launches()) == [0, stream, stream]
    assert uploads() == 3, "a table that another stream uploads may not be there yet"


@pytest.mark.parametrize("options", [{}, {"fused": True}])
def test_two_devices(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gets its own launch on its own stream, and the numbers as copies; the current device is put back."""
    device, host = twins(lambda params: fusedoptim.AdamW(params, **options))
    stream = lib.stand_in_new_stream(1)
    lib.posing_set_stream(1, stream)
    for p in params_of(device)[1::2]:
        place(p, 1)
    for seed in (1, 2):
        set_grads(device, seed)
        set_grads(host, seed)
        for p in params_of(device)[1::2]:
            place(p.grad, 1)
        for optimizer in (device, host):
            optimizer.grad_scale = torch.tensor([4.0])
        if options:
            device.found_inf = torch.tensor([0.0])
        with nothing_read(monkeypatch):
            device.step()
        with on_host():
            host.step()
    finish()
    assert sorted((launch.device, launch.stream) for launch in launches()) == [(0, 0)] * 2 + [(1, stream)] * 2
    assert_same(snapshot(device), snapshot(host))
    current = ctypes.c_int(-1)
    assert lib.cudaGetDevice(ctypes.byref(current)) == 0
    assert current.value == 0


def test_host_and_device_in_one_optimizer() -> None:
    device, host = twins(lambda params: fusedoptim.Adam(params, lr=place(torch.tensor(0.1), 0), capturable=True))
    for group in host.param_groups:
        group["lr"] = 0.10000000149011612
    for p in params_of(device)[1::2]:
        place(p, HOST)
    device.found_inf = host.found_inf = torch.zeros(1)
    device.grad_scale = host.grad_scale = torch.full((1,), 8.0)
    for seed in (1, 2):
        set_grads(device, seed)
        set_grads(host, seed)
        for p in params_of(device)[1::2]:
            place(p.grad, HOST)
        device.step()
        with on_host():
            host.step()
    finish()
    assert_same(snapshot(device), snapshot(host))
    device.found_inf = torch.ones(1)
    set_grads(device, 3)
    before = everything_of(device)
    device.step()
    finish()
    assert everything_of(device) == before


# ---- numbers on the device ------------------------------------------------------------------------------------------

# Adagrad's first state does not pose. Of the others the host counts the steps, and so decides whether there is one.
BY_HOST = (
    fusedoptim.Adagrad, fusedoptim.AdEMAMix, fusedoptim.AdamWScheduleFree, fusedoptim.Adan, fusedoptim.SGDScheduleFree,
)  # fmt: skip


@pytest.mark.parametrize("value", [1.0, 2.5, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("mode", [None, "to_zero"])
@of_cases([case for case in everything() if case.cls not in BY_HOST])
def test_found_inf_skips_everything(
    case: Case, mode: str | None, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, host = twins(lambda params: case.make(params, **case.flag("fused", "capturable")))
    step_both(device, host, 1)
    finish()
    before = snapshot(device)
    set_grads(device, 2)
    grads = [p.grad.clone() for p in params_of(device)]
    device.found_inf, device.grad_scale = torch.tensor([value]), torch.tensor([2.0])
    with nothing_read(monkeypatch):
        device.step(zero_grad=mode)
    finish()
    for entry, (p, grad) in zip(before, zip(params_of(device), grads, strict=True), strict=True):
        entry["grad"] = torch.zeros_like(p) if mode else grad
    assert_same(snapshot(device), before)

    device.found_inf = host.found_inf = torch.zeros(1)  # and the next step is the second one
    device.grad_scale = host.grad_scale = torch.tensor([2.0])
    step_both(device, host, 3, zero_grad=mode)
    finish()
    assert_same(snapshot(device), snapshot(host))


def test_overflow_in_the_first_step_of_momentum() -> None:
    """The first step begins the buffer; one that is skipped must not count as it, so there the host looks."""
    device, host = twins(lambda params: fusedoptim.SGD(params, lr=0.1, momentum=0.9, dampening=0.5, fused=True))
    set_grads(device, 1)
    device.found_inf, device.grad_scale = torch.ones(1), torch.ones(1)
    device.step()
    finish()
    assert not device.state
    device.found_inf = host.found_inf = torch.zeros(1)
    host.grad_scale = torch.ones(1)
    for seed in (2, 3):
        step_both(device, host, seed)
    finish()
    assert_same(snapshot(device), snapshot(host))


def test_overflow_in_the_first_step_of_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state is there, as zeros, with no step counted."""
    device, host = twins(lambda params: fusedoptim.Adam(params, fused=True))
    set_grads(device, 1)
    device.found_inf, device.grad_scale = torch.ones(1), torch.ones(1)
    with nothing_read(monkeypatch):
        device.step()
    finish()
    assert all(x.count_nonzero() == 0 for state in device.state.values() for x in state.values())
    device.found_inf = torch.zeros(1)
    step_both(device, host, 2)
    finish()
    assert_same(snapshot(device), snapshot(host))


@of_dtypes
@pytest.mark.parametrize("mode", [None, "to_zero", "to_none"])
@pytest.mark.parametrize("scale", [65536.0, 3.0])
def test_grad_scale(dtype: torch.dtype, mode: str | None, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    device, host = twins(lambda params: fusedoptim.AdamW(params, fused=True, maximize=True), dtype)
    device.grad_scale = torch.tensor([scale])
    device.found_inf = torch.zeros(1)
    host.grad_scale = scale
    for seed in (1, 2):
        set_grads(device, seed)
        set_grads(host, seed)
        with nothing_read(monkeypatch):
            device.step(zero_grad=mode)
        with on_host():
            host.step(zero_grad=mode)
    finish()
    assert_same(snapshot(device), snapshot(host))


@of_dtypes
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_averages(name: str, dtype: torch.dtype) -> None:
    """Of two groups with decays of their own, from the first step on; one step is skipped, and one decay changed."""

    def make(params: list[Any]) -> Any:
        groups = [{"params": params[:3], "ema_decay": 0.9}, {"params": params[3:], "ema_decay": 0.3}]
        return getattr(fusedoptim, name)(groups, lr=0.1, fused=True)

    device, host = twins(make, dtype)
    for seed in (1, 2, 3, 4):
        device.param_groups[0]["ema_decay"] = host.param_groups[0]["ema_decay"] = 0.9 if seed < 4 else 0.6
        device.found_inf = host.found_inf = torch.tensor(float(seed == 3))
        step_both(device, host, seed)
    finish()
    averages = [device.state[p]["ema"] for p in params_of(device)]
    assert any((average != p).any() for average, p in zip(averages, params_of(device), strict=True))
    assert_same(snapshot(device), snapshot(host))


@of_dtypes
def test_clipping(dtype: torch.dtype) -> None:
    """Each group by a limit of its own; gradients stay as they are."""

    def make(params: list[Any]) -> Any:
        groups = [{"params": params[:3], "max_grad_norm": 0.7}, {"params": params[3:], "max_grad_norm": 30.0}]
        return fusedoptim.Adam(groups, lr=0.1, maximize=True, fused=True)

    device, host = twins(make, dtype)
    for seed in (1, 2):
        step_both(device, host, seed)
    finish()
    assert 0 < float(host.grad_norm) / 30 < 1000
    assert_same(snapshot(device), snapshot(host))


@pytest.mark.parametrize("lr_dtype", [torch.float32, torch.float64, torch.bfloat16])
# Where a rule keeps numbers on the host, as ASGD's pose, or writes to its group, the host reads the learning rate.
@of_cases(
    [
        case
        for case in one_per_class()
        if "lr" in options_of(case.rule.update) and not (case.rule.beside_param or case.rule.advance_group)
    ]
)
@of_dtypes
def test_learning_rate_on_the_device(
    case: Case, dtype: torch.dtype, lr_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read there in each step, so that a scheduler that writes to it is followed; the step may be counted anywhere."""
    lr = place(torch.tensor(0.0123, dtype=lr_dtype), 0)
    device, host = twins(lambda params: case.make(params, lr=0.5, **case.flag("capturable")), dtype)
    for seed in (1, 2, 3):
        device.param_groups[0]["lr"] = lr
        host.param_groups[0]["lr"] = lr.double().item()
        set_grads(device, seed)
        set_grads(host, seed)
        with nothing_read(monkeypatch):
            device.step()
        with on_host():
            host.step()
        finish()
        lr.mul_(0.5)
    assert_same(snapshot(device), snapshot(host))


def test_learning_rate_on_the_device_and_steps_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    lr, betas = place(torch.tensor(0.0123), 0), tuple(place(torch.tensor(x), 0) for x in (0.8, 0.97))
    device, host = twins(lambda params: fusedoptim.Adam(params))
    for optimizer, group in ((device, {"lr": lr, "betas": betas}), (host, {})):
        optimizer.param_groups[0].update(group)
    host.param_groups[0].update(lr=lr.item(), betas=tuple(x.item() for x in betas))
    for seed in (1, 2, 3):
        set_grads(device, seed)
        set_grads(host, seed)
        if seed == 2:
            params_of(device)[0].grad = params_of(host)[0].grad = None
        with nothing_read(monkeypatch):
            device.step()
        with on_host():
            host.step()
    finish()
    assert_same(snapshot(device), snapshot(host))


@of_dtypes
@of_cases([case for case in everything() if "Adam" in case.id and case.flag("capturable")])
@pytest.mark.parametrize("start", [0.0, 999_999.0, 2.0**24])
def test_step_counts_on_the_device(case: Case, dtype: torch.dtype, start: float) -> None:
    """Bias corrections folded there have the bits of the host's. Parameters at different counts share a launch."""
    device, host = twins(lambda params: case.make(params, capturable=True), dtype)
    step_both(device, host, 1)
    finish()
    for optimizer in (device, host):
        for i, p in enumerate(params_of(optimizer)):
            optimizer.state[p]["step"].fill_(start + 7 * i)
    for seed in (2, 3):
        lib.stand_in_reset()
        step_both(device, host, seed)
        finish()
        assert len(launches()) == 1
    assert_same(snapshot(device), snapshot(host))


def test_steps_of_double_precision() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        device, host = twins(lambda params: fusedoptim.Adam(params, capturable=True))
        for seed in (1, 2):
            step_both(device, host, seed)
        finish()
        assert device.state[params_of(device)[0]]["step"].dtype == torch.float64
        assert_same(snapshot(device), snapshot(host))
    finally:
        torch.set_default_dtype(before)


def test_a_count_is_rounded_before_it_is_used() -> None:
    """float32 cannot count beyond 2^24: host and device then fold with the number that is stored."""
    device, host = twins(lambda params: fusedoptim.Adam(params, betas=(0.9, 1 - 1e-9), capturable=True), torch.float64)
    step_both(device, host, 1)
    finish()
    for optimizer in (device, host):
        for state in optimizer.state.values():
            state["step"].fill_(2.0**24)
    step_both(device, host, 2)
    finish()
    assert_same(snapshot(device), snapshot(host))


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"capturable": True}])
def test_where_the_step_count_lies(options: dict[str, Any]) -> None:
    """As torch places it: on the parameter's device with fused=True or capturable=True, else on the host."""
    optimizer = fusedoptim.Adam(make_params(SHAPES), **options)
    set_grads(optimizer, 1)
    optimizer.step()
    finish()
    assert {device_of(state["step"]) for state in optimizer.state.values()} == {0 if options else HOST}
    meta = Parameter(torch.empty(3, device="meta"))
    state = optimizer._new_state(meta, optimizer.param_groups[0])
    assert state["step"].device.type == ("meta" if options else "cpu")
    assert state["exp_avg"].device.type == "meta"


@pytest.mark.parametrize("saved", [{}, {"fused": True}, {"capturable": True}])
@pytest.mark.parametrize("loaded", [{}, {"fused": True}, {"capturable": True}])
def test_checkpoints_move_between_placements(saved: dict[str, Any], loaded: dict[str, Any]) -> None:
    """Whatever flags a checkpoint was saved with, the loaded optimizer goes on where the saved one would."""
    first, host = twins(lambda params: fusedoptim.Adam(params, **saved))
    step_both(first, host, 1)
    finish()
    second = fusedoptim.Adam([Parameter(p.detach().clone()) for p in params_of(first)], **loaded)
    second.load_state_dict(first.state_dict())
    for state in second.state.values():
        place(state["step"], 0 if saved else HOST)  # where torch's load_state_dict puts it
    step_both(second, host, 2)
    finish()
    assert_same(snapshot(second), snapshot(host))


def test_a_loaded_step_count_goes_where_this_optimizer_has_it() -> None:
    """A file saved without fused=True leaves it on the CPU; here it must not stay there, or every step would wait."""
    saved = fusedoptim.Adam([Parameter(torch.ones(3))])
    params_of(saved)[0].grad = torch.ones(3)
    with on_host():
        saved.step()
    meta = fusedoptim.Adam([Parameter(torch.empty(3, device="meta"))])
    meta.param_groups[0]["fused"] = True
    meta.load_state_dict(saved.state_dict())
    (state,) = meta.state.values()
    assert state["step"].device.type == "meta"
    assert state["step"].dtype == torch.float32


# ---- graphs ---------------------------------------------------------------------------------------------------------


@contextmanager
def capture(stream: int) -> Iterator[list[int]]:
    """Record what is queued on a stream, made the current one, as a graph whose number comes out at the end."""
    graph: list[int] = []
    lib.posing_set_stream(0, stream)
    lib.stand_in_begin_capture(stream)
    try:
        yield graph
    finally:
        graph.append(lib.stand_in_end_capture(stream))
        lib.posing_set_stream(0, 0)


@of_cases([case for case in everything() if "Adam" in case.id and case.flag("capturable")])
@pytest.mark.parametrize("mode", [None, "to_zero"])
def test_capture_and_replay(case: Case, mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replayed with other gradients, found_inf and learning rate in place: each replay is the step that it would be."""
    lr, found_inf = place(torch.tensor(0.25), 0), torch.zeros(1)
    device, host = twins(lambda params: case.make(params, lr=0.25, capturable=True))
    step_both(device, host, 1)
    finish()
    device.param_groups[0]["lr"] = lr
    device.found_inf = found_inf
    set_grads(device, 2)
    grads = [p.grad for p in params_of(device)]
    before = snapshot(device)
    stream = lib.stand_in_new_stream(0)
    with capture(stream) as graph, nothing_read(monkeypatch, waiting=1):  # for the table of the graph, once
        device.step(zero_grad=mode)
    assert lib.stand_in_graph_size(graph[0]) == 1, "one kernel, no copies"
    finish()
    assert_same(snapshot(device), before, "nothing runs while it is captured: ")
    for seed in (3, 4, 5, 6):
        found_inf.fill_(1.0 if seed == 5 else 0.0)
        set_grads(host, seed)
        for grad, q in zip(grads, params_of(host), strict=True):
            grad.copy_(q.grad)
        lib.stand_in_replay(graph[0])
        host.param_groups[0]["lr"] = lr.item()
        with on_host():
            if seed != 5:
                host.step(zero_grad=mode)
            elif mode:
                host.zero_grad(set_to_none=False)
        assert_same(snapshot(device), snapshot(host), f"replay {seed}: ")
        lr.mul_(0.5)


def test_a_graph_outlives_later_steps() -> None:
    """Steps with other gradients, before and after the capture, leave the memory that the graph reads alone."""
    device, host = twins(lambda params: fusedoptim.Adam(params, capturable=True))
    step_both(device, host, 1)
    finish()
    set_grads(device, 2)
    grads = [p.grad for p in params_of(device)]
    stream = lib.stand_in_new_stream(0)
    with capture(stream) as graph:
        device.step()
    lib.posing_set_stream(0, stream)
    for seed in range(3, 19):
        if seed % 6 == 0:
            set_grads(host, seed)
            for grad, q in zip(grads, params_of(host), strict=True):
                grad.copy_(q.grad)
            lib.stand_in_replay(graph[0])
            with on_host():
                host.step()
        else:
            step_both(device, host, seed)
            finish()
    for p, grad in zip(params_of(device), grads, strict=True):
        p.grad = grad
    for q in params_of(host):
        q.grad = None
    for p, q in zip(params_of(device), params_of(host), strict=True):
        q.grad = p.grad.clone()
    device.step()  # with the very table of the graph
    finish()
    with on_host():
        host.step()
    assert_same(snapshot(device), snapshot(host))


def test_a_graph_outlives_its_optimizer() -> None:
    """Without momentum SGD has no state: model and graph are all that a user keeps."""
    params, twin = make_params(SHAPES), make_params(SHAPES)
    optimizer, host = fusedoptim.SGD(params, lr=0.1), fusedoptim.SGD(twin, lr=0.1)
    set_grads(optimizer, 1)
    set_grads(host, 1)
    with capture(lib.stand_in_new_stream(0)) as graph:
        optimizer.step()
    del optimizer
    gc.collect()
    lib.stand_in_replay(graph[0])
    with on_host():
        host.step()
    assert_same([{"param": p.detach()} for p in params], [{"param": q.detach()} for q in twin])


def test_capture_of_steps_counted_on_the_host_is_refused() -> None:
    """A graph would not raise them. The capture is told of before anything is queued."""
    optimizer = fusedoptim.Adam(make_params(SHAPES))
    set_grads(optimizer, 1)
    optimizer.step()
    finish()
    before = everything_of(optimizer)
    with capture(lib.stand_in_new_stream(0)) as graph, pytest.raises(RuntimeError, match="capturable=True"):
        optimizer.step()
    assert lib.stand_in_graph_size(graph[0]) == 0
    assert everything_of(optimizer) == before


def test_zeroing_is_captured() -> None:
    optimizer = fusedoptim.SGD(make_params(SHAPES), lr=0.1)
    set_grads(optimizer, 1)
    with capture(lib.stand_in_new_stream(0)) as graph:
        optimizer.zero_grad(set_to_none=False)
    for p in params_of(optimizer):
        p.grad.fill_(3.0)
    lib.stand_in_replay(graph[0])
    assert all(p.grad.count_nonzero() == 0 for p in params_of(optimizer))


# ---- failures -------------------------------------------------------------------------------------------------------

FAILING = {
    "cudaLaunchKernel": (
        CONFIGURATION,
        r"launch of adam on 4 float32 parameters \(4 blocks of 256 threads on cuda:0\)",
    ),
    "cudaMalloc": (MEMORY, "allocating the table of a step"),
    "cudaHostAlloc": (MEMORY, "allocating pinned memory"),
    "cudaMemcpyAsync": (CONFIGURATION, "uploading the table"),
    "cudaStreamIsCapturing": (CONFIGURATION, "asking whether a graph is captured"),
    "cudaOccupancyMaxActiveBlocksPerMultiprocessor": (CONFIGURATION, "how many blocks fit"),
}


@pytest.mark.parametrize("options", [{}, {"fused": True}])
@pytest.mark.parametrize(
    ("function", "taken"),
    # In the second step memory and the number of blocks are there.
    [*((function, 0) for function in FAILING), ("cudaLaunchKernel", 1), ("cudaMemcpyAsync", 1)],
)
def test_a_failure_writes_nothing(function: str, taken: int, options: dict[str, Any]) -> None:
    """The error says what failed; the next step is the one that failed, with the bits that it would have had."""
    code, words = FAILING[function]
    shapes = [(5,), (8193,), (3, 4), (0,)]
    device, host = (fusedoptim.Adam(make_params(shapes), **options) for _ in range(2))
    for seed in range(taken):
        step_both(device, host, 10 + seed)
    finish()
    set_grads(device, 1)
    before = everything_of(device)
    lib.stand_in_fail(function.encode(), 0, code, 2 if code == MEMORY else 1)
    with pytest.raises(RuntimeError, match=words):
        device.step(zero_grad="to_zero")
    finish()
    assert everything_of(device) == before
    for seed in (1, 2):
        step_both(device, host, seed)
    finish()
    assert_same(snapshot(device), snapshot(host))


def test_a_later_launch_that_fails() -> None:
    groups = [{"params": make_params([(5,)])}, {"params": make_params([(6,)]), "lr": 0.5}]
    optimizer = fusedoptim.SGD(groups, lr=0.1)
    set_grads(optimizer, 1)
    lib.stand_in_fail(b"cudaLaunchKernel", 1, CONFIGURATION, 1)
    with pytest.raises(RuntimeError, match="1 launches of this step were made before it"):
        optimizer.step()


def test_memory_that_torch_holds_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's allocator keeps most of a device's memory; it gives back what it does not use, and the step goes on."""
    asked = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.append(True))
    device, host = twins(lambda params: fusedoptim.AdamW(params))
    lib.stand_in_fail(b"cudaMalloc", 0, MEMORY, 1)
    step_both(device, host, 1)
    lib.stand_in_fail(b"cudaHostAlloc", 0, MEMORY, 1)
    device.zero_grad(set_to_none=False)
    finish()
    assert len(asked) == 2
    with on_host():
        host.zero_grad(set_to_none=False)
    assert_same(snapshot(device), snapshot(host))


@pytest.mark.parametrize("options", [{}, {"fused": True}])
@pytest.mark.parametrize(
    ("function", "code", "name"),
    [
        ("cudaFuncGetAttributes", NO_IMAGE, "cudaErrorNoKernelImageForDevice"),
        ("cudaGetDevice", OLD_DRIVER, "cudaErrorInsufficientDriver"),
    ],
)
def test_a_device_without_kernels(
    function: str, code: int, name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch takes its parameters, or, where the kernels are demanded, the error says why they cannot."""
    optimizer = fusedoptim.SGD(make_params([(5,)]), lr=0.1, **options)
    set_grads(optimizer, 1)
    lib.stand_in_fail(function.encode(), 0, code, 1)
    left = torch_steps(monkeypatch)
    if options:
        with pytest.raises(RuntimeError, match=f"do not run on its device.*{name}"):
            optimizer.step()
    else:
        optimizer.step()
        assert len(left) == 1
    assert not launches()


def test_a_passing_trouble_is_not_remembered() -> None:
    """It raises, for silently another implementation would take the step; and the next step is the kernels'."""
    optimizer = fusedoptim.SGD(make_params([(5,)]), lr=0.1)
    set_grads(optimizer, 1)
    lib.stand_in_fail(b"cudaFuncGetAttributes", 0, MEMORY, 1)
    with pytest.raises(RuntimeError, match="looking for the kernels"):
        optimizer.step()
    optimizer.step()
    finish()
    assert len(launches()) == 1


def test_gradients_on_another_device() -> None:
    optimizer = fusedoptim.SGD(make_params([(5,)]), lr=0.1, fused=True)
    set_grads(optimizer, 1)
    place(params_of(optimizer)[0].grad, 1)
    with pytest.raises(RuntimeError, match="its gradient is on another device"):
        optimizer.step()


# ---- shapes and dtypes at the edges ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [8191, 8192, 8193, 2 * 8192 + 1, 5 * 8192])
def test_sizes_around_chunks(dtype: torch.dtype, size: int) -> None:
    """More chunks than the stand-in runs blocks of, too."""
    device, host = (fusedoptim.AdamW([Parameter(numbers(size, dtype, 1))], amsgrad=True) for _ in range(2))
    for seed in (1, 2):
        for optimizer in (device, host):
            set_gradients(params_of(optimizer), seed)
        device.step(zero_grad="to_zero" if seed == 2 else None)
        with on_host():
            host.step(zero_grad="to_zero" if seed == 2 else None)
    finish()
    assert_same(snapshot(device), snapshot(host))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", ["param", "grad", "state"])
@pytest.mark.parametrize("offset", [1, 2, 3, 5])
def test_one_operand_that_begins_off_the_16_bytes(dtype: torch.dtype, which: str, offset: int) -> None:
    def shifted(x: Tensor) -> Tensor:
        return torch.cat([x.new_zeros(offset), x])[offset:]

    device, host = (fusedoptim.Adam([Parameter(numbers(100, dtype, 1))]) for _ in range(2))
    for seed in (1, 2, 3):
        for optimizer in (device, host):
            set_gradients(params_of(optimizer), seed)
        (p,) = params_of(device)
        if which == "param":
            p.data = shifted(p.detach())
        elif which == "grad":
            p.grad = shifted(p.grad)
        elif seed > 1:
            device.state[p]["exp_avg_sq"] = shifted(device.state[p]["exp_avg_sq"])
        device.step()
        finish()
        with on_host():
            host.step()
    assert_same(snapshot(device), snapshot(host))
