"""``fusedoptim.GradScaler`` does what torch's does, in fewer passes; and torch's goes well with clipping."""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from helpers import (
    assert_tensors_match,
    contents,
    count_calls,
    everything_of,
    make_params,
    of_settings,
    params_of,
    randn,
)
from steps import threads
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

import fusedoptim
from fusedoptim import reference
from fusedoptim.clipping.norm import GradNorm

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend")

SCALERS: list[Any] = [fusedoptim.GradScaler, torch.amp.GradScaler]
SHAPES = [(4, 33), (), (0,), (5000,)]
of_fused = pytest.mark.parametrize("fused", [None, True])
of_scalers = pytest.mark.parametrize("scaler_class", SCALERS, ids=["ours", "torchs"])


def scale_gradients(scaler: Any, optimizer: Any, seed: int | None) -> None:
    """Gradients of a scaled loss, with an overflow if there is no seed."""
    loss = sum((p * randn(p.shape, (seed or 0) + i, p.dtype)).sum() for i, p in enumerate(params_of(optimizer)))
    scaler.scale(loss if seed is not None else loss * torch.inf).backward()


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, int]]:
    """How many passes over gradients of each kind there were since the last call."""
    calls = {name: count_calls(monkeypatch, GradNorm, name) for name in ("measure", "unscale")}
    check = torch._amp_foreach_non_finite_check_and_unscale_
    calls["torchs"] = []

    def noting(grads: Any, *args: Any) -> None:
        calls["torchs"].append(grads)
        check(grads, *args)

    monkeypatch.setattr(torch, "_amp_foreach_non_finite_check_and_unscale_", noting)

    def counts() -> dict[str, int]:
        found = {name: len(noted) for name, noted in calls.items() if noted}
        for noted in calls.values():
            noted.clear()
        return found

    return counts


# How the step of one of our optimizers is clipped, and of torch's.
CLIPS: dict[str, tuple[dict[str, Any], Callable[[Any], Any] | None]] = {
    "none": ({}, None),
    "skip": ({"skip_nonfinite": True}, None),
    "setting": ({"max_grad_norm": 0.5}, None),
    "both": ({"max_grad_norm": 0.5, "skip_nonfinite": True}, None),
    "method": ({}, lambda optimizer: optimizer.clip_grad_norm_(0.5)),
    "torchs": ({}, lambda optimizer: torch.nn.utils.clip_grad_norm_(params_of(optimizer), 0.5)),
}


def train(
    optimizer: Any, scaler: Any, clip: Callable[[Any], Any] | None, zero_grad: str | None = None
) -> list[dict[str, Any]]:
    """Steps with overflows in between; what each leaves."""
    left = []
    for seed in (None, 1, 2, None, None, 3, 4, 5):
        scale_gradients(scaler, optimizer, seed)
        if clip is not None:
            scaler.unscale_(optimizer)
            clip(optimizer)
        if zero_grad is None:
            scaler.step(optimizer)
        else:
            scaler.step(optimizer, zero_grad=zero_grad)
        scaler.update()
        norm = getattr(optimizer, "grad_norm", None)
        left.append({
            "params": [p.detach().clone() for p in params_of(optimizer)],
            "grads": [None if p.grad is None else p.grad.clone() for p in params_of(optimizer)],
            "state": [dict(optimizer.state.get(p) or {}) for p in params_of(optimizer)],
            "scale": scaler.get_scale(),
            "norm": None if norm is None else norm.clone(),
        })  # fmt: skip
        optimizer.zero_grad()
    return left


def assert_same(x: Any, y: Any) -> None:
    assert type(x) is type(y)
    if isinstance(x, Tensor):
        assert_tensors_match(x, y, True, "")
    elif isinstance(x, (dict, list)):
        assert len(x) == len(y)
        for a, b in zip(*(z.items() if isinstance(z, dict) else z for z in (x, y)), strict=True):
            assert_same(list(a) if isinstance(a, tuple) else a, list(b) if isinstance(b, tuple) else b)
    else:
        assert x == y


@of_settings
@of_fused
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("zero_grad", [None, "to_none"])
def test_as_torchs_scaler_and_clipping(
    name: str, options: dict[str, Any], fused: bool | None, clip: str, zero_grad: str | None
) -> None:
    settings, method = CLIPS[clip]
    runs = []
    for scaler_class in SCALERS:
        optimizer = getattr(fusedoptim, name)(make_params(SHAPES), **options, **settings, fused=fused)
        scaler = scaler_class("cpu", init_scale=8.0, growth_interval=2)
        runs.append(train(optimizer, scaler, method, zero_grad))
    assert_same(*runs)

    wanted = CLIPS["torchs"][1] if clip not in ("none", "skip") else None
    theirs = getattr(torch.optim, name)(make_params(SHAPES), **options, foreach=False)
    for mine, other in zip(
        runs[0], train(theirs, torch.amp.GradScaler("cpu", 8.0, growth_interval=2), wanted), strict=True
    ):
        assert mine["scale"] == other["scale"]
        for p, q in zip(mine["params"], other["params"], strict=True):
            assert_tensors_match(p, q, name == "SGD" and wanted is None, clip)


@of_fused
@pytest.mark.parametrize("clip", CLIPS)
def test_passes(fused: bool | None, clip: str, passes: Any, backend: str) -> None:
    """One before the step, whoever wants to know, and none by torch; none where the step itself looks."""
    settings, method = CLIPS[clip]
    optimizer = fusedoptim.Adam(make_params(SHAPES), **settings, fused=fused)
    scaler = fusedoptim.GradScaler("cpu", 8.0)
    for seed in (1, None, 2):
        scale_gradients(scaler, optimizer, seed)
        passes()
        if method is not None:
            scaler.unscale_(optimizer)
            assert passes() == {"unscale": 1}
            method(optimizer)
            assert passes() == ({"measure": 1} if seed is None and clip == "method" else {})
        scaler.step(optimizer)
        looks_within = fused and seed != 1 and backend == "native"  # in its first step Adam has no state
        assert passes() == ({} if method or looks_within else {"measure" if fused else "unscale": 1})
        scaler.update()
        optimizer.zero_grad()


def test_other_optimizers_are_left_to_torch(passes: Any) -> None:
    optimizer = torch.optim.Adam(make_params(SHAPES))
    scaler = fusedoptim.GradScaler("cpu", 8.0)
    scale_gradients(scaler, optimizer, 1)
    scaler.step(optimizer)
    assert passes() == {"torchs": 1}


def test_gradients_on_a_device_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = count_calls(monkeypatch, GradNorm, "__init__")
    p = Parameter(torch.ones(4, device="meta"))
    p.grad = torch.ones_like(p)
    scaler = fusedoptim.GradScaler("cpu", 8.0)
    scaler.scale(torch.ones(()))
    scaler.unscale_(fusedoptim.SGD([p], lr=0.1))
    assert looks == []


def odd_gradient(kind: str, p: Parameter) -> Tensor:
    if kind == "sparse":
        return torch.full_like(p, 8.0).to_sparse()
    if kind == "expanded":
        return torch.tensor(8.0).expand(p.shape)
    if kind == "negated":
        return torch.view_as_complex(torch.full((*p.shape, 2), -8.0)).conj().imag
    return torch.full_like(p, 8.0).as_subclass(type("Own", (Tensor,), {}))


@pytest.mark.parametrize("kind", ["sparse", "expanded", "negated", "subclass"])
def test_odd_gradients_are_left_to_torch(kind: str, passes: Any) -> None:
    outcomes = []
    for scaler_class in SCALERS:
        params = make_params([(4, 3), (2,)])
        optimizer = fusedoptim.SGD(params, lr=0.1)
        scaler = scaler_class("cpu", 8.0)
        scaler.scale(torch.ones(()))
        params[0].grad, params[1].grad = odd_gradient(kind, params[0]), torch.ones(2)
        try:
            scaler.unscale_(optimizer)
            outcomes.append([p.grad.to_dense().tolist() for p in params])
        except RuntimeError as error:
            outcomes.append([str(error)])
        assert "unscale" not in passes()
    assert outcomes[0] == outcomes[1]


@of_scalers
def test_float16_gradients(scaler_class: Any) -> None:
    p = Parameter(torch.ones(4, dtype=torch.float16))
    scaler = scaler_class("cpu", 8.0)
    scaler.scale((p * 3).sum()).backward()
    with pytest.raises(ValueError, match=r"Attempting to unscale FP16 gradients\."):
        scaler.step(fusedoptim.SGD([p], lr=0.5))
    assert p.grad.tolist() == [24.0] * 4
    scaler = scaler_class("cpu", 8.0)
    optimizer = fusedoptim.SGD([p], lr=0.5, fused=True, max_grad_norm=3.0)
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    assert optimizer.grad_norm.item() == 6.0
    torch.testing.assert_close(p.detach(), torch.full_like(p, 0.25))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [1024.0, 3.0, torch.inf])
def test_division_rounds_once(dtype: torch.dtype, scale: float) -> None:
    params = make_params([(700, 431), (5, 3), ()], dtype)  # enough for several threads
    grads = [randn(p.shape, 7 + i, dtype) for i, p in enumerate(params)]
    grads[1] = grads[1].T.contiguous().T  # columns lie side by side
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad.clone(memory_format=torch.preserve_format)
    optimizer = fusedoptim.SGD(params, lr=0.1)
    scaler = fusedoptim.GradScaler("cpu", scale)
    scaler.scale(torch.ones(()))
    versions = [p.grad._version for p in params]
    with threads(4):
        scaler.unscale_(optimizer)
    for p, grad, version in zip(params, grads, versions, strict=True):
        assert_tensors_match(p.grad, reference.prepare_grad(grad, grad_scale=scale).to(dtype), True, str(p.shape))
        assert p.grad._version == version + 1
    norm = optimizer.clip_grad_norm_(1.0)
    assert torch.equal(norm, fusedoptim.clip_grad_norm_(params, torch.inf))


def test_gradients_that_share_memory_are_divided_one_after_the_other() -> None:
    left = []
    for scaler_class in SCALERS:
        a, b = Parameter(torch.zeros(5000)), Parameter(torch.zeros(3000))
        a.grad = randn((5000,), 1)
        b.grad = a.grad[1000:4000]
        scaler = scaler_class("cpu", 4.0)
        scaler.scale(torch.ones(()))
        optimizer = fusedoptim.SGD([a, b], lr=0.1)
        scaler.unscale_(optimizer)
        left.append([a.grad, optimizer.clip_grad_norm_(1.0)])
    assert_same(*left)


def test_finite_float64_whose_squares_are_not() -> None:
    for fused in (None, True):
        for value, expected in ((1e200, 0.0), (torch.inf, 1.0)):
            p = Parameter(torch.zeros(3, dtype=torch.float64))
            p.grad = torch.tensor([1.0, value, 2.0], dtype=torch.float64)
            optimizer = fusedoptim.SGD([p], lr=1.0, fused=fused)
            scaler = fusedoptim.GradScaler("cpu", 2.0)
            scaler.scale(torch.ones(()))
            scaler.step(optimizer)
            assert [float(x) for x in scaler._found_inf_per_device(optimizer).values()] == [expected]
            assert p.tolist() == ([-0.5, -5e199, -1.0] if expected == 0 else [0.0] * 3)


@of_fused
def test_below_1_the_scaler_is_torchs(fused: bool | None, passes: Any) -> None:
    """The quotient is infinite, and torch, which looks at the gradient, finds nothing."""
    for scaler_class in SCALERS:
        p = Parameter(torch.zeros(2))
        p.grad = torch.tensor([3e38, 1.0])
        optimizer = fusedoptim.SGD([p], lr=1.0, fused=fused)
        scaler = scaler_class("cpu", 0.5)
        scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        assert passes() == {"torchs": 1}
        assert p.tolist() == [-torch.inf, -2.0]


WRITES: dict[str, Callable[[Any], Any]] = {
    "written": lambda optimizer: params_of(optimizer)[0].grad.mul_(2),
    "written where torch does not count": lambda optimizer: params_of(optimizer)[3].grad.data.mul_(2),
    "memory replaced": lambda optimizer: setattr(
        params_of(optimizer)[3].grad,
        "data",
        torch.cat([params_of(optimizer)[3].grad[:4096], torch.ones(904)]),  # which begins alike
    ),
    "replaced": lambda optimizer: setattr(params_of(optimizer)[0], "grad", torch.ones(4, 33)),
    "dropped": lambda optimizer: setattr(params_of(optimizer)[0], "grad", None),
    "another parameter": lambda optimizer: optimizer.add_param_group({"params": [_with_grad()]}),
    "a scale of the user's": lambda optimizer: setattr(optimizer, "grad_scale", torch.tensor(4.0)),
}


def _with_grad() -> Parameter:
    p = Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    return p


@of_fused
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("method", [True, False])
def test_a_norm_is_measured_again_where_something_was_written(
    fused: bool | None, write: str, method: bool, passes: Any
) -> None:
    norms = []
    for scaler_class in SCALERS:
        optimizer = fusedoptim.SGD(make_params(SHAPES), lr=0.1, max_grad_norm=0.5, fused=fused)
        scaler = scaler_class("cpu", 8.0)
        scale_gradients(scaler, optimizer, 1)
        scaler.unscale_(optimizer)
        WRITES[write](optimizer)
        passes()
        if method:
            norms.append(optimizer.clip_grad_norm_(0.5))
        else:
            scaler.step(optimizer)
            norms.append(optimizer.grad_norm)
        is_unasked = method and "scale" in write  # the method knows of no scale
        measured = passes()
        assert scaler_class is not fusedoptim.GradScaler or measured == ({} if is_unasked else {"measure": 1})
    assert_same(*norms)


@of_fused
@pytest.mark.parametrize("skip", [False, True])
def test_groups_of_which_one_is_clipped(fused: bool | None, skip: bool) -> None:
    left = []
    for scaler_class in SCALERS:
        params = make_params(SHAPES)
        groups = [{"params": params[:2]}, {"params": params[2:], "max_grad_norm": 0.5}]
        optimizer = fusedoptim.SGD(groups, lr=0.1, skip_nonfinite=skip, fused=fused)
        scaler = scaler_class("cpu", 8.0)
        scale_gradients(scaler, optimizer, 1)
        scaler.step(optimizer)
        left.append([optimizer.grad_norm, *(p.detach() for p in params)])
    assert_same(*left)


def test_another_norm_is_measured() -> None:
    optimizer = fusedoptim.SGD(make_params([(4, 33), (7,)]), lr=0.1)
    scaler = fusedoptim.GradScaler("cpu", 8.0)
    scale_gradients(scaler, optimizer, 1)
    scaler.unscale_(optimizer)
    largest = max(p.grad.abs().max() for p in params_of(optimizer) if p.grad is not None)
    assert optimizer.clip_grad_norm_(1.0, torch.inf) == largest


def test_a_mode_sees_torchs_operations(passes: Any) -> None:
    optimizer = fusedoptim.SGD(make_params(SHAPES), lr=0.1)
    scaler = fusedoptim.GradScaler("cpu", 8.0)
    scale_gradients(scaler, optimizer, 1)

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    with Watching():
        scaler.step(optimizer)
    assert any("_amp_foreach_non_finite_check_and_unscale_" in name for name in seen)
    assert passes() == {"torchs": 1}


@of_fused
def test_hooks_see_and_change_what_they_do_with_torchs_scaler(fused: bool | None) -> None:
    seen: list[Any] = []

    def hook(optimizer: Any, *_: Any) -> None:
        seen.append([p.grad.clone() for p in params_of(optimizer)])
        params_of(optimizer)[3].grad.mul_(3)

    for scaler_class in SCALERS:
        optimizer = fusedoptim.SGD(make_params(SHAPES), lr=0.1, max_grad_norm=0.5, fused=fused)
        optimizer.register_step_pre_hook(hook)
        scaler = scaler_class("cpu", 8.0)
        scale_gradients(scaler, optimizer, 1)
        scaler.step(optimizer)
        seen[-1] += [optimizer.grad_norm, *(p.detach() for p in params_of(optimizer))]
    assert_same(*seen)


class _OwnStep(fusedoptim.SGD):
    def step(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        pass


@of_scalers
@pytest.mark.parametrize("kind", ["ours", "own step", "replaced", "hook", "closure"])
@pytest.mark.parametrize("seed", [1, None])
def test_an_overflow_is_found_whoever_takes_the_step(scaler_class: Any, kind: str, seed: int | None) -> None:
    cls = _OwnStep if kind == "own step" else fusedoptim.SGD
    optimizer = cls(make_params(SHAPES), lr=0.1, fused=True, skip_nonfinite=True)
    before = [p.detach().clone() for p in params_of(optimizer)]
    scaler = scaler_class("cpu", 8.0)
    scale_gradients(scaler, optimizer, seed)
    if kind == "replaced":
        optimizer.step = lambda *_: None
    if kind == "hook":
        optimizer.register_step_pre_hook(lambda *_: [p.grad.fill_(3.0) for p in params_of(optimizer)][:0] or None)
    scaler.step(optimizer, *([lambda: None] if kind == "closure" else []))
    scaler.update()
    assert scaler.get_scale() == (4.0 if seed is None else 8.0)
    is_taken = seed is not None and kind in ("ours", "hook", "closure")
    assert is_taken == (not all(map(torch.equal, params_of(optimizer), before)))
    assert optimizer.skipped_steps == 0, "the scaler counts these"
    assert not {"found_inf", "grad_scale", "_check_within"} & set(optimizer.__dict__)


@of_scalers
def test_a_step_without_gradients_is_an_error(scaler_class: Any) -> None:
    optimizer = fusedoptim.SGD(make_params(SHAPES), lr=0.1, fused=True)
    scaler = scaler_class("cpu", 8.0)
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    with pytest.raises(AssertionError, match="No inf checks were recorded"):
        scaler.update()


@of_fused
def test_a_scale_that_the_user_set_is_a_factor(fused: bool | None, passes: Any, backend: str) -> None:
    left = []
    for scaler_class in SCALERS:
        optimizer = fusedoptim.SGD(make_params(SHAPES), lr=0.1, max_grad_norm=0.5, fused=fused)
        scaler = scaler_class("cpu", 7.0)
        scale_gradients(scaler, optimizer, 1)
        optimizer.grad_scale = 1 / 3
        passes()
        scaler.step(optimizer)
        if fused and scaler_class is fusedoptim.GradScaler:
            assert passes() == ({} if backend == "native" else {"measure": 1})
        left.append([optimizer.grad_norm, *(p.grad for p in params_of(optimizer))])
    if fused:
        assert_same(*left)


@of_fused
def test_one_of_two_optimizers_overflows(fused: bool | None) -> None:
    runs = []
    for scaler_class in SCALERS:
        pair = [fusedoptim.AdamW(make_params(SHAPES), max_grad_norm=0.5, fused=fused) for _ in range(2)]
        scaler = scaler_class("cpu", 8.0, growth_interval=2)
        left = []
        for bad in (None, 0, 1, None, None):
            for i, optimizer in enumerate(pair):
                scale_gradients(scaler, optimizer, None if i == bad else 1)
            before = [everything_of(optimizer) for optimizer in pair]
            for optimizer in pair:
                scaler.step(optimizer)
            scaler.update()
            after = [everything_of(optimizer) for optimizer in pair]
            assert [x[2] == y[2] for x, y in zip(before, after, strict=True)] == [i == bad for i in range(2)]
            for optimizer in pair:
                left += [scaler.get_scale(), *(p.detach().clone() for p in params_of(optimizer))]
                optimizer.zero_grad()
        runs.append(left)
    assert_same(*runs)


def message_of(action: Callable[[], Any]) -> str:
    with pytest.raises((RuntimeError, AssertionError)) as caught:
        action()
    return f"{type(caught.value).__name__}: {caught.value}"


@of_fused
def test_errors_are_torchs(fused: bool | None) -> None:
    messages = []
    for scaler_class in SCALERS:
        optimizer = fusedoptim.SGD(make_params(SHAPES), lr=0.1, fused=fused)
        scaler = scaler_class("cpu", 8.0)
        found = [message_of(lambda: scaler.step(optimizer))]  # noqa: B023  # before any scale
        scale_gradients(scaler, optimizer, 1)
        found.append(message_of(lambda: scaler.step(optimizer, closure=lambda: 0)))  # noqa: B023
        found.append(message_of(lambda: scaler.step(optimizer, closure=None)))  # noqa: B023
        scaler.unscale_(optimizer)
        before = everything_of(optimizer)
        found.append(message_of(lambda: scaler.unscale_(optimizer)))  # noqa: B023
        assert everything_of(optimizer) == before
        scaler.step(optimizer)
        found.append(message_of(lambda: scaler.step(optimizer)))  # noqa: B023
        found.append(message_of(lambda: scaler.unscale_(optimizer)))  # noqa: B023
        found.append(message_of(lambda: pickle.dumps(scaler)))  # noqa: B023
        scaler.update()
        found.append(message_of(scaler.update))
        messages.append(found)
    assert messages[0] == messages[1]


def test_without_any_gradient() -> None:
    for scaler_class in SCALERS:
        scaler = scaler_class("cpu", 8.0)
        scaler.scale(torch.ones(()))
        assert "No inf checks" in message_of(lambda: scaler.step(fusedoptim.SGD(make_params(), lr=0.1)))  # noqa: B023
        scaler.step(fusedoptim.SGD(make_params(), lr=0.1, fused=True))
        assert "No inf checks" in message_of(scaler.update)


def test_state_goes_to_and_from_torchs() -> None:
    optimizer = fusedoptim.SGD(make_params(SHAPES), lr=0.1)
    scaler = fusedoptim.GradScaler("cpu", init_scale=8.0, growth_factor=4.0, growth_interval=3)
    train(optimizer, scaler, None)
    theirs = torch.amp.GradScaler("cpu")
    theirs.load_state_dict(scaler.state_dict())
    assert theirs.state_dict() == scaler.state_dict() != torch.amp.GradScaler("cpu").state_dict()
    other = fusedoptim.GradScaler("cpu")
    other.load_state_dict(theirs.state_dict())
    assert other.state_dict() == pickle.loads(pickle.dumps(scaler)).state_dict() == scaler.state_dict()
    other._lazy_init_scale_growth_tracker(torch.device("cpu"))
    assert_same(*(train(optimizer, x, None)[-1]["scale"] for x in (other, scaler)))


@of_fused
def test_a_disabled_one_does_nothing(fused: bool | None, passes: Any) -> None:
    optimizer = fusedoptim.SGD(make_params(SHAPES), lr=0.1, fused=fused)
    scaler = fusedoptim.GradScaler("cpu", enabled=False)
    scale_gradients(scaler, optimizer, 1)
    scaler.unscale_(optimizer)
    before = contents([p.grad for p in params_of(optimizer)])
    scaler.step(optimizer)
    scaler.update()
    assert contents([p.grad for p in params_of(optimizer)]) == before
    assert passes() == {}
    assert (scaler.get_scale(), scaler.state_dict()) == (1.0, {})


def test_update_lets_go_of_the_gradients() -> None:
    for fused in (None, True):
        optimizer = fusedoptim.SGD(make_params(SHAPES), lr=0.1, fused=fused)
        scaler = fusedoptim.GradScaler("cpu", 8.0)
        scale_gradients(scaler, optimizer, 1)
        scaler.unscale_(optimizer)
        grad = weakref.ref(params_of(optimizer)[0].grad)
        scaler.step(optimizer)
        scaler.update()
        params_of(optimizer)[0].grad = None
        assert grad() is None


@helpers.need_kernels
@pytest.mark.parametrize("direct", ["0", "1"])
def test_an_empty_gradient_shifts_no_other(direct: str) -> None:
    code = """
import torch
import fusedoptim
params = [torch.nn.Parameter(torch.ones(n)) for n in (0, 3, 4)]
for p in params:
    p.grad = torch.full_like(p, len(p))
norm = fusedoptim.clipping.norm.GradNorm([params])
norm.measure()
print(len(norm.others), norm.norm ** 2)
"""
    count, square = helpers.run_python(code, FUSEDOPTIM_DIRECT=direct, FUSEDOPTIM_BACKEND="native").split()
    assert count == "0"
    assert float(square) == pytest.approx(3 * 9 + 4 * 16)


def test_a_torch_with_other_private_parts_keeps_its_scaler() -> None:
    code = """
import torch
torchs = torch.amp.GradScaler._unscale_grads_
def other(self, optimizer, inv_scale, found_inf, allow_fp16, foreach=True):
    print("torchs")
    return torchs(self, optimizer, inv_scale, found_inf, allow_fp16)
torch.amp.GradScaler._unscale_grads_ = other
import fusedoptim
p = torch.nn.Parameter(torch.ones(2))
optimizer, scaler = fusedoptim.SGD([p], lr=0.5), fusedoptim.GradScaler("cpu", 8.0)
scaler.scale(p.sum()).backward()
scaler.step(optimizer)
print(p.tolist())
"""
    assert helpers.run_python(code) == "torchs\n[0.5, 0.5]\n"
