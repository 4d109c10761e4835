"""Clipping and skipping on a device: the bits of the host, launches whose number nothing changes, and nobody who waits.

Run by ``test_end_to_end.py``, with the plugin ``posed``, as ``device_tests.py`` is, and with its tools.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from device_tests import (
    CONFIGURATION,
    MEMORY,
    _alive,
    _queued,  # noqa: F401 - a fixture
    capture,
    finish,
    launches,
    nothing_read,
    on_host,
    set_grads,
    step_both,
    uploads,
)
from helpers import everything_of, make_params, params_of, randn
from posed import HOST, lib, place
from steps import assert_same, snapshot
from torch import Tensor
from torch.nn import Parameter

import fusedoptim
from fusedoptim.clipping import device_norm

SIZES = [1, 127, 128, 129, 0, 4095, 4096, 4097, 8191, 8192, 8193, 3 * 4096 + 5, 131 * 4096 + 1, 7]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
of_dtypes = pytest.mark.parametrize("dtypes", [[x] for x in DTYPES] + [DTYPES], ids=str)
INF, NAN = float("inf"), float("nan")


def of_dtypes_and_odd(*odd: float | None) -> pytest.MarkDecorator:
    """The first of these numbers in gradients of each dtype, the others in those of all together."""
    pairs = [*(([x], odd[0]) for x in DTYPES), *((DTYPES, x) for x in odd)]
    return pytest.mark.parametrize(("dtypes", "odd"), pairs, ids=str)


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What is allocated on the device, kept for what is queued; it holds other numbers until it is written."""
    made: list[Tensor] = []
    empty = device_norm.empty

    def noted(*args: Any) -> Tensor:
        made.append(empty(*args).fill_(-7.0))
        return made[-1]

    monkeypatch.setattr(device_norm, "empty", noted)
    monkeypatch.setattr(device_norm, "_driver", None)  # with the tables of other tests
    return made


def params_of_sizes(dtypes: list[torch.dtype]) -> list[Parameter]:
    return [Parameter(randn((size,), i, dtypes[i % len(dtypes)])) for i, size in enumerate(SIZES)]


def bits(x: Tensor) -> Any:
    return torch.where(x.isnan(), torch.full_like(x, NAN), x).reshape(-1).view(torch.uint8).tolist()


def twins(dtypes: list[torch.dtype], **options: Any) -> tuple[Any, Any]:
    device, host = (fusedoptim.AdamW(params_of_sizes(dtypes), lr=0.1, fused=True, **options) for _ in range(2))
    return device, host


# ---- bits -----------------------------------------------------------------------------------------------------------


@of_dtypes
@pytest.mark.parametrize("limit", [0.5, 1e6, 0.0])
def test_a_step_that_clips(dtypes: list[torch.dtype], limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    device, host = twins(dtypes, max_grad_norm=limit, maximize=True)
    for seed in (1, 2):
        set_grads(device, seed)
        set_grads(host, seed)
        with nothing_read(monkeypatch):
            device.step()
        with on_host():
            host.step()
        finish()
        assert device.grad_norm.dtype == host.grad_norm.dtype
        assert bits(device.grad_norm) == bits(host.grad_norm)
    assert_same(snapshot(device), snapshot(host))


def strided(x: Tensor, kind: str) -> Tensor:
    """The same numbers, that lie otherwise."""
    if kind == "transposed":
        return x.T.contiguous().T
    if kind == "every second":
        return torch.stack([x, x], -1)[..., 0]
    if kind == "off the 16 bytes":
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    return x.clone().view(3, -1, 5, 7).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", ["transposed", "every second", "off the 16 bytes", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_norm_of_other_layouts(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not depend on them; clipped in place, gradients keep theirs."""
    plain = [randn((3 * 15, 70 * 7), 1, dtype), randn((15, 7), 2, dtype)]
    params = [Parameter(torch.zeros_like(strided(x, kind))) for x in plain]
    for p, x in zip(params, plain, strict=True):
        p.grad = strided(x, kind)
    before = [p.grad.stride() for p in params]
    with nothing_read(monkeypatch):
        norm = fusedoptim.clip_grad_norm_(params, 0.5)
    finish()
    twin = [Parameter(torch.zeros_like(x)) for x in plain]
    for p, x in zip(twin, plain, strict=True):
        p.grad = x.clone()
    with on_host():
        expected = fusedoptim.clip_grad_norm_(twin, 0.5)
    assert bits(norm) == bits(expected)
    for p, q in zip(params, twin, strict=True):
        assert bits(p.grad.reshape(q.grad.shape)) == bits(q.grad)
    assert [p.grad.stride() for p in params] == before


@of_dtypes_and_odd(None, INF, NAN)
@pytest.mark.parametrize("limit", [0.5, 1e6, 0.0, INF, NAN])
def test_clipping_at_once(
    dtypes: list[torch.dtype], limit: float, odd: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, host = twins(dtypes)
    for optimizer in (device, host):
        set_grads(optimizer, 3)
        if odd is not None:
            params_of(optimizer)[-2].grad[-1] = odd
    with nothing_read(monkeypatch):
        norm = fusedoptim.clip_grad_norm_(params_of(device), limit)
    finish()
    with on_host():
        expected = fusedoptim.clip_grad_norm_(params_of(host), limit)
    assert bits(norm) == bits(expected)
    for p, q in zip(params_of(device), params_of(host), strict=True):
        assert bits(p.grad) == bits(q.grad)
    assert len(launches()) == 2
    with pytest.raises(RuntimeError, match="non-finite") if odd is not None else nothing_read(monkeypatch):
        if odd is not None:
            lib.stand_in_set_eager(1)
            fusedoptim.clip_grad_norm_(params_of(device), limit, error_if_nonfinite=True)


def test_gradients_that_share_memory_are_clipped_one_after_the_other() -> None:
    lib.stand_in_set_eager(1)
    left = []
    for _ in range(2):
        a, b = Parameter(torch.zeros(5000)), Parameter(torch.zeros(3000))
        a.grad = randn((5000,), 1)
        b.grad = a.grad[1000:4000]
        norm = fusedoptim.clip_grad_norm_([a, b], 0.5)
        left.append((bits(norm), bits(a.grad)))
        assert [kind(launch) for launch in launches()] == ["norm"]
        lib.posing_set_default(HOST)
    assert left[0] == left[1]


@pytest.mark.parametrize("limits", [(0.1, 0.2), (0.0, 0.2), (0.3, 1e9)])
def test_limits_of_groups(limits: tuple[float, float]) -> None:
    """One norm, of all, and each group its own coefficient."""
    optimizers = []
    for _ in range(2):
        groups = [{"params": make_params([(5,), (300,)])} for _ in limits]
        optimizer = fusedoptim.SGD(groups, lr=0.1)
        for group, limit in zip(optimizer.param_groups, limits, strict=True):
            group["max_grad_norm"] = limit
        optimizers.append(optimizer)
    device, host = optimizers
    step_both(device, host, 1)
    finish()
    assert bits(device.grad_norm) == bits(host.grad_norm)
    assert_same(snapshot(device), snapshot(host))
    assert [kind(launch) for launch in launches()] == ["norm", "step", "step"]


@pytest.mark.parametrize("skip", [False, True])
def test_groups_of_which_one_is_clipped(skip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> Any:
        params = params_of_sizes(DTYPES)
        groups = [{"params": params[:5], "max_grad_norm": 0.1}, {"params": params[5:]}]
        return fusedoptim.SGD(groups, lr=0.1, skip_nonfinite=skip, fused=True)

    device, host = make(), make()
    for seed, odd in ((1, None), (2, 0), (3, -1), (4, None)):
        for optimizer in (device, host):
            set_grads(optimizer, seed)
            if odd is not None:
                params_of(optimizer)[odd].grad[0] = NAN
        with nothing_read(monkeypatch):
            device.step()
        with on_host():
            host.step()
        finish()
        assert bits(device.grad_norm) == bits(host.grad_norm)
        assert_same(snapshot(device), snapshot(host))
    assert device.skipped_steps == host.skipped_steps == (2 if skip else 0)


@pytest.mark.parametrize("options", [{}, {"skip_nonfinite": True}])
@pytest.mark.parametrize("scale", [None, 3.0])
def test_clipping_of_the_next_step(
    options: dict[str, Any], scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, host = twins(DTYPES, **options)
    for seed in (1, 2, 3):
        for optimizer in (device, host):
            set_grads(optimizer, seed)
            if seed == 2 and options:
                params_of(optimizer)[0].grad[0] = INF
            optimizer.grad_scale = None if scale is None else torch.full((1,), scale)
        with nothing_read(monkeypatch):
            norm = device.clip_grad_norm_(0.25)
            device.step()
        with on_host():
            expected = host.clip_grad_norm_(0.25)
            host.step()
        finish()
        assert bits(norm) == bits(expected)
        assert_same(snapshot(device), snapshot(host))
    assert device.skipped_steps == host.skipped_steps == len(options)


def test_a_limit_for_what_torch_steps() -> None:
    """Of the coefficient there is a tensor on the device."""
    lib.stand_in_set_eager(1)
    left = []
    for _ in range(2):
        params = make_params([(5,), (300,)])
        groups = [{"params": params[:1], "foreach": True}, {"params": params[1:]}]
        optimizer = fusedoptim.SGD(groups, lr=0.1, max_grad_norm=0.5)
        set_grads(optimizer, 1)
        optimizer.step()
        left.append([bits(p.detach()) for p in params])
        lib.posing_set_default(HOST)
    assert left[0] == left[1]


# ---- launches, memory, streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 400])
def test_so_many_launches_whatever_the_number_of_gradients(
    count: int, made: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"max_grad_norm": 0.5, "skip_nonfinite": True}
    optimizer = fusedoptim.AdamW([Parameter(randn((64,), i)) for i in range(count)], fused=True, **options)
    set_grads(optimizer, 1)
    for _ in range(3):
        del made[:-3]
        with nothing_read(monkeypatch):
            optimizer.step()
        finish()
    assert [kind(launch) for launch in launches()] == ["norm", "step"] * 3
    assert uploads() == 2
    assert len(made) == 3 + 3, "sums, norm and verdict in each step"
    before = lib.stand_in_launch_count()
    with nothing_read(monkeypatch):
        fusedoptim.clip_grad_norm_(params_of(optimizer), 0.5)
        optimizer.clip_grad_norm_(0.5)
        optimizer.step()
    finish()
    assert [kind(launch) for launch in launches()[before:]] == ["norm", "clip", "norm", "judge", "step"]


def kind(launch: Any) -> str:
    return next(name for name in ("norm", "clip", "judge", "step") if f"4{name}" in launch.kernel.decode()
                or f"5{name}" in launch.kernel.decode())  # fmt: skip


def test_the_current_stream_and_new_gradients_in_the_queue() -> None:
    """The host runs ahead, with other gradients each time."""
    device, host = twins([torch.float32], max_grad_norm=0.5, skip_nonfinite=True)
    stream = lib.stand_in_new_stream(0)
    lib.posing_set_stream(0, stream)
    for seed in range(1, 7):
        step_both(device, host, seed)
    assert not launches()
    finish()
    assert {launch.stream for launch in launches()} == {stream}
    assert bits(device.grad_norm) == bits(host.grad_norm)
    assert_same(snapshot(device), snapshot(host))


@pytest.mark.parametrize("order", [1, 7])
def test_any_order_of_threads(order: int) -> None:
    lib.stand_in_set_order(order)
    try:
        device, host = twins(DTYPES, max_grad_norm=0.5)
        step_both(device, host, 1)
        finish()
        assert bits(device.grad_norm) == bits(host.grad_norm)
        assert_same(snapshot(device), snapshot(host))
    finally:
        lib.stand_in_set_order(0)


# ---- skipping -------------------------------------------------------------------------------------------------------


@of_dtypes_and_odd(INF, -INF, NAN)
@pytest.mark.parametrize("limit", [None, 0.5])
@pytest.mark.parametrize("mode", [None, "to_zero"])
def test_skipping(
    dtypes: list[torch.dtype], odd: float, limit: float | None, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, host = twins(dtypes, skip_nonfinite=True, max_grad_norm=limit)
    for seed in (1, 2, 3, 4):
        for optimizer in (device, host):
            set_grads(optimizer, seed)
            if seed in (2, 3):
                params_of(optimizer)[seed].grad[-1] = odd
        with nothing_read(monkeypatch):
            device.step(zero_grad=mode)
        with on_host():
            host.step(zero_grad=mode)
        finish()
        assert_same(snapshot(device), snapshot(host), f"step {seed}: ")
    assert device.skipped_steps == host.skipped_steps == 2
    device.skipped_steps = 5
    assert device.skipped_steps == 5
    device.skipped_steps += 1
    assert device.skipped_steps == 6


@pytest.mark.parametrize("limit", [None, 0.5])
def test_what_the_scaler_skips_is_not_counted(limit: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number and ours forbid the step together; and quotients are what is measured."""
    device, host = twins(DTYPES, skip_nonfinite=True, max_grad_norm=limit)
    for seed, found, odd in ((1, 0.0, None), (2, 1.0, None), (3, 1.0, INF), (4, 0.0, INF), (5, 0.0, None)):
        for optimizer in (device, host):
            set_grads(optimizer, seed)
            if odd is not None:
                params_of(optimizer)[0].grad[0] = odd
            optimizer.found_inf, optimizer.grad_scale = torch.full((1,), found), torch.full((1,), 3.0)
        with nothing_read(monkeypatch):
            device.step()
        with on_host():
            host.step()
        finish()
        assert_same(snapshot(device), snapshot(host), f"step {seed}: ")
    assert device.skipped_steps == host.skipped_steps == 1
    if limit is not None:
        assert bits(device.grad_norm) == bits(host.grad_norm)


def test_first_steps_that_only_the_host_can_skip() -> None:
    device, host = (
        fusedoptim.SGD(params_of_sizes(DTYPES), lr=0.1, momentum=0.9, skip_nonfinite=True) for _ in range(2)
    )
    lib.stand_in_set_eager(1)
    for seed, odd in ((1, NAN), (2, None), (3, NAN), (4, None)):
        for optimizer in (device, host):
            set_grads(optimizer, seed)
            if odd is not None:
                params_of(optimizer)[0].grad[0] = odd
        device.step()
        with on_host():
            host.step()
        assert_same(snapshot(device), snapshot(host), f"step {seed}: ")
    assert device.skipped_steps == host.skipped_steps == 2


# ---- graphs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"skip_nonfinite": True}])
def test_a_captured_step_clips_and_skips(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Replayed with other gradients in place, each by the norm that these have."""
    device, host = (
        fusedoptim.AdamW(params_of_sizes(DTYPES), lr=0.1, capturable=True, max_grad_norm=0.5, **options)
        for _ in range(2)
    )
    step_both(device, host, 1)
    finish()
    set_grads(device, 2)
    grads = [p.grad for p in params_of(device)]
    stream = lib.stand_in_new_stream(0)
    tables = len({p.dtype for p in params_of(device)}) + 1
    with capture(stream) as graph, nothing_read(monkeypatch, waiting=tables):  # for each table of the graph, once
        device.step()
    assert lib.stand_in_graph_size(graph[0]) == 1 + len(DTYPES)
    for seed in (3, 4, 5, 6):
        set_grads(host, seed)
        for q in params_of(host):
            q.grad *= seed
        if seed in (4, 5) and options:
            params_of(host)[-seed].grad[-1] = INF
        for grad, q in zip(grads, params_of(host), strict=True):
            grad.copy_(q.grad)
        lib.stand_in_replay(graph[0])
        with on_host():
            host.step()
        assert bits(device.grad_norm) == bits(host.grad_norm)
        assert_same(snapshot(device), snapshot(host), f"replay {seed}: ")
    assert device.skipped_steps == host.skipped_steps == (2 if options else 0)


def test_clipping_at_once_is_captured() -> None:
    params, twin = params_of_sizes(DTYPES), params_of_sizes(DTYPES)
    for p in params:
        p.grad = torch.zeros_like(p)
    with capture(lib.stand_in_new_stream(0)) as graph:
        norm = fusedoptim.clip_grad_norm_(params, 0.5)
    for seed in (1, 2):
        for i, (p, q) in enumerate(zip(params, twin, strict=True)):
            q.grad = randn(q.shape, seed + i, q.dtype) * seed
            p.grad.copy_(q.grad)
        lib.stand_in_replay(graph[0])
        with on_host():
            expected = fusedoptim.clip_grad_norm_(twin, 0.5)
        assert bits(norm) == bits(expected)
        assert [bits(p.grad) for p in params] == [bits(q.grad) for q in twin]


def test_a_capture_before_any_step_has_no_count_of_skipped_ones() -> None:
    optimizer = fusedoptim.SGD(make_params([(5,)]), lr=0.1, skip_nonfinite=True)
    set_grads(optimizer, 1)
    with capture(lib.stand_in_new_stream(0)) as graph, pytest.raises(RuntimeError, match="take a step before"):
        optimizer.step()
    assert lib.stand_in_graph_size(graph[0]) == 0


# ---- loss scaling ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1024.0, 3.0])
@pytest.mark.parametrize("odd", [None, INF, NAN])
def test_unscale_divides_and_checks_in_one_launch(
    scale: float, odd: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lib.stand_in_set_eager(1)
    left = []
    for _ in range(2):
        optimizer = fusedoptim.SGD(params_of_sizes(DTYPES[:2]), lr=0.1)
        set_grads(optimizer, 1)
        params_of(optimizer)[6].grad = torch.stack([randn((4096,), 1)] * 2, -1)[..., 0]
        if odd is not None:
            params_of(optimizer)[3].grad[-1] = odd
        scaler = fusedoptim.GradScaler("cpu", scale)
        scaler.scale(torch.ones(()))
        versions = [p.grad._version for p in params_of(optimizer)]
        before = lib.stand_in_launch_count()
        with nothing_read(monkeypatch) if not left else on_host():
            scaler.unscale_(optimizer)
        assert lib.stand_in_launch_count() - before == (0 if left else 1)
        (found,) = scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values()
        if odd is None or not left:  # on the host torch has divided, by a reciprocal
            left.append([found.item(), *(bits(p.grad) for p in params_of(optimizer))])
            assert [p.grad._version for p in params_of(optimizer)] == [version + 1 for version in versions]
        if not left[1:]:
            norm = optimizer.clip_grad_norm_(0.5)
            assert bits(norm) == bits(fusedoptim.clip_grad_norm_(params_of(optimizer), INF))
    assert left[0][0] == (0.0 if odd is None else 1.0)
    assert odd is not None or left[0] == left[1]


@pytest.mark.parametrize("odd", [None, INF, NAN])
def test_a_fused_step_of_the_scaler(odd: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    lib.stand_in_set_eager(1)
    device, host = twins(DTYPES, max_grad_norm=0.5)
    scalers = [fusedoptim.GradScaler("cpu", 8.0) for _ in range(2)]
    for seed in (1, 2):
        for optimizer, scaler in zip((device, host), scalers, strict=True):
            set_grads(optimizer, seed)
            if odd is not None and seed == 2:
                params_of(optimizer)[0].grad[0] = odd
            scaler.scale(torch.ones(()))
        for x in (scalers[0]._scale,):
            place(x, 0)
        before = lib.stand_in_launch_count()
        scalers[0].step(device)
        assert [kind(launch) for launch in launches()[before:]].count("norm") == (2 if odd is None or seed == 1 else 1)
        with on_host():
            scalers[1].step(host)
        assert_same(snapshot(device), snapshot(host), f"step {seed}: ")
        assert bits(device.grad_norm) == bits(host.grad_norm)
        scalers[0].update()
        scalers[1].update()
        assert scalers[0].get_scale() == scalers[1].get_scale() == (8.0 if odd is None or seed == 1 else 4.0)


# ---- what stays with the host ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["float64", "on the host", "on another device", "negated"])
def test_others_are_measured_one_by_one(other: str) -> None:
    """And the host waits. Huge numbers of float64 have a norm there."""
    lib.stand_in_set_eager(1)
    left = []
    for _ in range(2):
        params = make_params([(300,), (5,)], torch.float64 if other == "float64" else torch.float32)
        for i, p in enumerate(params):
            p.grad = randn(p.shape, i, p.dtype) * (1e200 if other == "float64" else 1)
        if other == "negated":
            params[0].grad = torch._neg_view(params[0].grad)
        elif not left and other.startswith("on"):
            place(params[0], HOST if "host" in other else 1)
            place(params[0].grad, HOST if "host" in other else 1)
        optimizer = fusedoptim.SGD(params, lr=0.1, max_grad_norm=0.5, skip_nonfinite=True)
        optimizer.step()
        left.append([bits(optimizer.grad_norm), *(bits(p.detach()) for p in params)])
        assert optimizer.skipped_steps == 0
        lib.posing_set_default(HOST)
    assert left[0] == left[1]


def test_a_group_on_the_host_is_clipped_and_one_on_the_device_is_not() -> None:
    lib.stand_in_set_eager(1)
    left = []
    for _ in range(2):
        params = make_params([(300,), (5,)])
        set_grads(fusedoptim.SGD(params), 1)
        if not left:
            place(params[1], HOST)
            place(params[1].grad, HOST)
        optimizer = fusedoptim.SGD([{"params": params[:1]}, {"params": params[1:], "max_grad_norm": 0.5}], lr=0.1)
        optimizer.step()
        left.append([bits(optimizer.grad_norm), *(bits(p.detach()) for p in params)])
        lib.posing_set_default(HOST)
    assert left[0] == left[1]


# ---- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "code", "words"),
    [
        ("cudaLaunchKernel", CONFIGURATION, "launch of the norm of gradients"),
        ("cudaMalloc", MEMORY, "allocating the table"),
        ("cudaMemcpyAsync", CONFIGURATION, "uploading the table"),
    ],
)
def test_a_failure_writes_nothing(function: str, code: int, words: str) -> None:
    device, host = twins([torch.float32], max_grad_norm=0.5)
    set_grads(device, 1)
    before = everything_of(device)
    lib.stand_in_fail(function.encode(), 0, code, 2 if code == MEMORY else 1)
    with pytest.raises(RuntimeError, match=words):
        device.step()
    finish()
    assert everything_of(device) == before
    for seed in (1, 2):
        step_both(device, host, seed)
    finish()
    assert_same(snapshot(device), snapshot(host))


def test_memory_that_torch_holds_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.append(True))
    device, host = twins([torch.float32], max_grad_norm=0.5)
    lib.stand_in_fail(b"cudaMalloc", 0, MEMORY, 1)
    step_both(device, host, 1)
    finish()
    assert len(asked) == 1
    assert_same(snapshot(device), snapshot(host))


def test_nothing_is_left_behind() -> None:
    before = [lib.stand_in_count(what) for what in (b"allocated", b"pinned")]
    optimizer = fusedoptim.SGD(make_params([(5,)]), lr=0.1, max_grad_norm=0.5)
    set_grads(optimizer, 1)
    optimizer.step()
    finish()
    _alive.clear()
    del optimizer
    assert [lib.stand_in_count(what) for what in (b"allocated", b"pinned")] == before
