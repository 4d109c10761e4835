"""The reference rules: equal to torch where torch keeps to the same arithmetic, and to the equations in float64."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fusedoptim.reference import RULES, prepare_grad
from fusedoptim.reference.ieee import fma

FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}
STEPS = 20

SGD_OPTIONS: list[dict[str, Any]] = [
    {},
    {"lr": 0.3, "weight_decay": 0.013, "maximize": True},
    {"momentum": 0.9},
    {"momentum": 0.87, "dampening": 0.9, "weight_decay": 0.013, "maximize": True, "lr": 0.0123},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.013},
]
ADAM_OPTIONS: list[dict[str, Any]] = [
    {"weight_decay": 0},
    {"weight_decay": 0.013, "lr": 0.0123, "eps": 1e-3},
    {"amsgrad": True, "betas": (0.8, 0.3)},
    {"maximize": True, "betas": (0.45, 0.9)},
    {"betas": (0.1, 0.95), "weight_decay": 0.1},
    {"betas": (0.5 + 1e-10, 0.99)},  # 1 - beta1 is below 0.5 in double, but not in float
    {"betas": (0.0, 0.0)},
    {"weight_decay": 0.013, "amsgrad": True, "maximize": True, "betas": (0.3, 0.7), "lr": 0.1, "eps": 1e-5},
]
CASES = [(torch.optim.SGD, options) for options in SGD_OPTIONS]
CASES += [(cls, options) for cls in (torch.optim.Adam, torch.optim.AdamW) for options in ADAM_OPTIONS]

State = dict[str, Tensor | None]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The tests are many small operations, which threads on a busy machine make slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Bit for bit, except that NaN equals NaN."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    integer = INTEGER[actual.element_size()]
    same = (actual.view(integer) == expected.view(integer)) | (actual.isnan() & expected.isnan())
    assert same.all(), f"{(~same).sum()} of {same.numel()} elements differ"


def group_of(cls: type[torch.optim.Optimizer], **options: Any) -> dict[str, Any]:
    return cls([torch.nn.Parameter(torch.zeros(1))], **options).param_groups[0]  # type: ignore[call-arg]


def update(
    group: dict[str, Any], param: Tensor, grad: Tensor, state: State, step: float
) -> tuple[Tensor, dict[str, Tensor]]:
    rule = RULES["adam" if "betas" in group else "sgd"]
    grad = prepare_grad(grad, maximize=group["maximize"])
    return rule.update(param, grad, state, step, **rule.options(group))


def gradients(n: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """Gradients of many sizes, a tenth of them zero."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        size = torch.randn(n, generator=generator).mul(2).exp() * (torch.rand(n, generator=generator) > 0.1)
        yield (torch.randn(n, generator=generator) * size).to(dtype)


def parameter(n: int, dtype: torch.dtype) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(n, generator=torch.Generator().manual_seed(0)).to(dtype))


def assert_follows(optimizer: torch.optim.Optimizer, grads: list[Tensor]) -> None:
    """The rule makes the same parameter and the same state as ``optimizer``, step by step."""
    group = optimizer.param_groups[0]
    param = group["params"][0]
    new_param, new_state = param.detach().clone(), {}
    for step, grad in enumerate(grads, start=1):
        param.grad = grad.clone()
        optimizer.step()
        new_param, new_state = update(group, new_param, grad, new_state, step)
        assert_same(new_param, param.detach())
        expected = {name: x for name, x in optimizer.state[param].items() if name != "step" and x is not None}
        assert new_state.keys() == expected.keys()
        assert set(RULES["adam" if "betas" in group else "sgd"].state_names(group)) - {"step"} == new_state.keys()
        for name, x in new_state.items():
            assert_same(x, expected[name])


# torch's kernels use fma where the instruction set has it; and a multiple of 64 elements has no scalar tail.
has_fma = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
needs_fma = pytest.mark.skipif(not has_fma, reason="torch's CPU kernels do not use fma here")
N = 64 * 50


@needs_fma
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("cls", "options"), CASES[len(SGD_OPTIONS) :])
def test_adam_equals_torch_fused(cls: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    assert_follows(cls([parameter(N, dtype)], fused=True, **options), list(gradients(N, dtype)))


@needs_fma
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", SGD_OPTIONS)
def test_sgd_equals_torch(options: dict[str, Any], dtype: torch.dtype) -> None:
    sgd = torch.optim.SGD([parameter(N, dtype)], foreach=False, fused=False, **options)
    assert_follows(sgd, list(gradients(N, dtype)))


def extreme_gradients(dtype: torch.dtype) -> list[Tensor]:
    """Two gradients that meet in every pair of special values."""
    info = torch.finfo(dtype)
    values = [0.0, info.smallest_normal * info.eps, info.smallest_normal / 2, info.smallest_normal, 1e-3, 1.0]
    values += [info.max**0.5, info.max / 2, info.max, math.inf, math.nan]
    special = torch.tensor([*values, *(-x for x in values[:-1])], dtype=dtype)
    pairs = torch.cartesian_prod(special, special)
    padding = -len(pairs) % 64
    return list(torch.cat([pairs, pairs[:padding]]).unbind(dim=1))


@needs_fma
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("cls", "options"), CASES)
def test_extreme_gradients_equal_torch(cls: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    grads = extreme_gradients(dtype)
    fused = {"fused": True} if cls is not torch.optim.SGD else {"foreach": False, "fused": False}
    for param in (parameter(len(grads[0]), dtype), torch.nn.Parameter(grads[1].flip(0).clone())):
        assert_follows(cls([param], **fused, **options), grads * 2)


def textbook(group: dict[str, Any], p: Tensor, grads: list[Tensor]) -> Tensor:
    """The papers' equations, as they stand there, in float64."""
    p, wd, lr = p.double(), group["weight_decay"], group["lr"]
    buffer = m = v = v_max = torch.zeros_like(p)
    for t, grad in enumerate(grads, start=1):
        g = -grad.double() if group["maximize"] else grad.double()
        if "momentum" in group:
            g = g + wd * p
            buffer = g if t == 1 else group["momentum"] * buffer + (1 - group["dampening"]) * g
            p = p - lr * (g + group["momentum"] * buffer if group["nesterov"] else buffer)
            continue
        beta1, beta2 = group["betas"]
        if group["decoupled_weight_decay"]:
            p = p - lr * wd * p
        else:
            g = g + wd * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        v_max = torch.maximum(v_max, v) if group["amsgrad"] else v
        p = p - lr * (m / (1 - beta1**t)) / ((v_max / (1 - beta2**t)).sqrt() + group["eps"])
    return p


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("cls", "options"), CASES)
def test_close_to_the_equations(cls: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    group = group_of(cls, **{**options, "lr": min(options.get("lr", 0.01), 0.01)})
    if group.get("momentum") == 0:
        group = {**group, "dampening": 0}  # has no meaning without momentum
    start, grads = parameter(N, dtype).detach(), [g.clamp(-10, 10) for g in gradients(N, dtype)]
    param, state = start, {}
    for step, grad in enumerate(grads, start=1):
        param, state = update(group, param, grad, state, step)
    expected = textbook(group, start, grads)
    error = (param.double() - expected).abs() / (start.abs() + STEPS * group["lr"])
    assert error.max() < STEPS * 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("cls", "options"), CASES)
def test_16_bits_are_computed_in_float32_and_rounded_once(
    cls: Any, options: dict[str, Any], dtype: torch.dtype
) -> None:
    group = group_of(cls, **options)
    param, state = parameter(1000, dtype).detach(), {}
    for step, grad in enumerate(gradients(1000, dtype), start=1):
        wide_state = {name: x.float() for name, x in state.items()}
        wide_param, wide_state = update(group, param.float(), grad.float(), wide_state, step)
        param, state = update(group, param, grad, state, step)
        assert_same(param, wide_param.to(dtype))
        for name, x in state.items():
            assert_same(x, wide_state[name].to(dtype))


@pytest.mark.parametrize("n", [0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65])
@pytest.mark.parametrize(("cls", "options"), CASES)
def test_result_does_not_depend_on_position(cls: Any, options: dict[str, Any], n: int) -> None:
    group = group_of(cls, **options)
    param, state = torch.full((n,), 0.7), {}
    for step in range(1, 4):
        param, state = update(group, param, torch.full((n,), 0.1 * step), state, step)
        for x in (param, *state.values()):
            assert len(x.unique()) == min(n, 1)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("cls", "options"), CASES)
def test_shapes_layouts_and_dtypes_are_those_of_the_inputs(
    cls: Any, options: dict[str, Any], dtype: torch.dtype
) -> None:
    group = group_of(cls, **options)
    base = parameter(480, dtype).detach()
    layouts = [
        base.view(2, 3, 16, 5).to(memory_format=torch.channels_last),
        base.view(20, 24).t(),
        base.view(20, 24)[::2, 1::3],
        base[0],
        base[:0].view(0, 4),
        torch.nn.Parameter(base[1:]),
    ]
    for param in layouts:
        plain, state, plain_state = param.detach().flatten(), {}, {}
        stride = torch.empty_like(param).stride()
        for step in range(1, 3):
            grad = torch.linspace(-2, 2, param.numel(), dtype=dtype).view(param.shape)
            param, state = update(group, param, grad, state, step)
            plain, plain_state = update(group, plain, grad.flatten(), plain_state, step)
            for x, y in ((param, plain), *((state[name], plain_state[name]) for name in state)):
                assert_same(x.flatten(), y)
                assert x.stride() == stride
                assert not x.requires_grad


@pytest.mark.parametrize(("cls", "options"), CASES)
def test_inputs_are_not_modified_nor_returned(cls: Any, options: dict[str, Any]) -> None:
    group = group_of(cls, **options)
    for dtype in (torch.float32, torch.float64):
        param, grad, state = parameter(100, dtype).detach(), parameter(100, dtype).detach().cos(), {}
        for step in range(1, 3):
            inputs = [param, grad, *state.values()]
            before = [x.clone() for x in inputs]
            new_param, new_state = update(group, param, grad, state, step)
            for x, y in zip(inputs, before, strict=True):
                assert_same(x, y)
            outputs = [new_param, *new_state.values()]
            assert len({x.data_ptr() for x in inputs + outputs}) == len(inputs + outputs)
            param, state = new_param, new_state


def test_state_keeps_its_own_dtype() -> None:
    param, grad = parameter(100, torch.bfloat16).detach(), torch.ones(100, dtype=torch.bfloat16)
    names = {torch.optim.Adam: ["exp_avg", "exp_avg_sq"], torch.optim.SGD: ["momentum_buffer"]}
    for cls, options in ((torch.optim.Adam, {}), (torch.optim.SGD, {"momentum": 0.9})):
        state: State = {name: torch.rand(100) for name in names[cls]}
        _, new_state = update(group_of(cls, **options), param, grad, state, 1)
        for x in new_state.values():
            assert x.dtype == torch.float32
            assert (x != x.bfloat16()).any()


def test_state_that_is_not_there_yet() -> None:
    param, grad = parameter(100, torch.float32).detach(), torch.rand(100)
    adam = group_of(torch.optim.Adam, amsgrad=True)
    zeros = {name: torch.zeros(100) for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")}
    expected, expected_state = update(adam, param, grad, zeros, 1)
    for state in ({}, dict.fromkeys(zeros), {**zeros, "max_exp_avg_sq": None}):
        actual, actual_state = update(adam, param, grad, state, 1)
        assert_same(actual, expected)
        for name in zeros:
            assert_same(actual_state[name], expected_state[name])

    sgd = group_of(torch.optim.SGD, momentum=0.9, dampening=0.5, lr=1.0)
    for state in ({}, {"momentum_buffer": None}):
        actual, actual_state = update(sgd, param, grad, state, 1)
        assert_same(actual_state["momentum_buffer"], grad)  # no dampening on the first step
        assert_same(actual, param - grad)
    ignored = {"momentum_buffer": torch.rand(100)}
    assert update(group_of(torch.optim.SGD), param, grad, ignored, 1)[1] == {}


def test_amsgrad_keeps_nan() -> None:
    group = group_of(torch.optim.Adam, amsgrad=True, betas=(0.9, 0.0))
    nan = math.nan
    state: State = {
        "exp_avg": torch.zeros(4),
        "exp_avg_sq": torch.zeros(4),
        "max_exp_avg_sq": torch.tensor([1.0, 9.0, nan, 1.0]),
    }
    _, new_state = update(group, torch.zeros(4), torch.tensor([2.0, 2.0, 2.0, nan]), state, 1)
    assert_same(new_state["max_exp_avg_sq"], torch.tensor([4.0, 9.0, nan, nan]))
    assert_same(new_state["exp_avg_sq"], torch.tensor([4.0, 4.0, 4.0, nan]))


@pytest.mark.parametrize("beta1", [0.1, 0.3, 0.5 + 1e-10, 0.9])
def test_first_moment_by_the_contract(beta1: float) -> None:
    grad, m = parameter(1000, torch.float32).detach(), torch.rand(1000)
    group = group_of(torch.optim.Adam, betas=(beta1, 0.999))
    state: State = {"exp_avg": m, "exp_avg_sq": torch.zeros(1000)}
    w = torch.tensor(1 - beta1)
    expected = fma(grad - m, w, m) if w < 0.5 else fma(grad - m, w - 1, grad)
    assert_same(update(group, torch.zeros(1000), grad, state, 1)[1]["exp_avg"], expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_prepare_grad(dtype: torch.dtype) -> None:
    grad = parameter(1000, dtype).detach()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    before = grad.clone()
    assert_same(prepare_grad(grad), grad.to(wide))
    assert_same(prepare_grad(grad, maximize=True), -grad.to(wide))
    scaled = prepare_grad(grad, maximize=True, grad_scale=3.0)
    assert_same(scaled, grad.to(wide) / torch.full((1000,), -3.0, dtype=wide))
    assert_same(grad, before)


def test_unscaled_16_bit_gradients_are_not_rounded_before_use() -> None:
    param, grad = parameter(1000, torch.float16).detach(), parameter(1000, torch.float16).detach().cos()
    group = group_of(torch.optim.SGD, lr=1.0)
    rule = RULES["sgd"]
    actual, _ = rule.update(param, prepare_grad(grad, grad_scale=3.0), {}, 1, **rule.options(group))
    assert_same(actual, (param.float() - grad.float() / torch.tensor(3.0)).half())


def test_options_are_what_the_rule_names() -> None:
    group = group_of(torch.optim.AdamW)
    expected = {"lr", "betas", "eps", "weight_decay", "amsgrad", "decoupled_weight_decay"}
    assert set(RULES["adam"].options(group)) == expected
    assert RULES["adam"].options(group)["betas"] == (0.9, 0.999)
    with pytest.raises(KeyError, match="momentum"):
        RULES["sgd"].options(group)


def test_default_dtype_does_not_matter() -> None:
    default = torch.get_default_dtype()
    for cls, options in CASES:
        group, param = group_of(cls, **options), parameter(100, torch.float32).detach()
        expected, _ = update(group, param, param.cos(), {}, 1)
        try:
            torch.set_default_dtype(torch.float64)
            actual, _ = update(group, param, param.cos(), {}, 1)
        finally:
            torch.set_default_dtype(default)
        assert_same(actual, expected)
