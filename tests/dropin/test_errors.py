"""A step that raises names the parameter and the reason, and has written nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from helpers import everything_of, in_child, make_params, params_of, randn, set_grads
from torch import Tensor
from torch.nn import Parameter

import fusedoptim

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend")

Spoil = Callable[[Any, Parameter], Any]


class Tagged(Tensor):
    """A subclass of no meaning."""


def groups_of(middle: list[Tensor]) -> list[dict[str, Any]]:
    """Three groups; what is wrong is wrong in the one between."""
    return [{"params": make_params([(3,), (2, 2)])}, {"params": middle}, {"params": make_params([(4,)])}]


def assert_nothing_written(optimizer: Any, error: type[Exception], match: str, **options: Any) -> None:
    before = everything_of(optimizer)
    for _ in range(2):
        with pytest.raises(error, match=match):
            optimizer.step(**options)
        assert everything_of(optimizer) == before


def adam_with_state(steps: int = 2, **options: Any) -> Any:
    optimizer = fusedoptim.Adam(groups_of(make_params([(5,), (2, 3)])), **options)
    for seed in range(steps):
        set_grads(optimizer, seed)
        optimizer.step()
    return optimizer


def _state(key: str, value: Any) -> Spoil:
    def spoil(optimizer: Any, param: Parameter) -> None:
        state = optimizer.state[param]
        state[key] = value(state[key]) if callable(value) else value

    return spoil


def _group(**options: Any) -> Spoil:
    return lambda optimizer, param: optimizer.param_groups[1].update(options)


def _without(key: str) -> Spoil:
    return lambda optimizer, param: optimizer.state[param].pop(key)


def _expanded(optimizer: Any, param: Parameter) -> None:
    param.data = torch.ones(2, 1).expand(2, 3)


SPOILED: dict[str, tuple[Spoil, type[Exception], str]] = {
    "state of another shape": (_state("exp_avg", torch.zeros(7)), RuntimeError, "exp_avg has shape"),
    "state of another rank": (_state("exp_avg_sq", torch.zeros(2, 3, 1)), RuntimeError, "exp_avg_sq has shape"),
    "no exp_avg": (_without("exp_avg"), KeyError, "no 'exp_avg'"),
    "no exp_avg_sq": (_without("exp_avg_sq"), KeyError, "no 'exp_avg_sq'"),
    "no step": (_without("step"), KeyError, "no 'step'"),
    "exp_avg None": (_state("exp_avg", None), KeyError, "no 'exp_avg'"),
    "amsgrad on": (_group(amsgrad=True), KeyError, "no 'max_exp_avg_sq'"),
    "expanded": (_expanded, RuntimeError, "refers to a single memory location"),
}


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize(("spoil", "error", "match"), SPOILED.values(), ids=SPOILED)
def test_spoiled_parameter(spoil: Spoil, error: type[Exception], match: str, fused: bool | None) -> None:
    optimizer = adam_with_state(fused=fused)
    param = optimizer.param_groups[1]["params"][1]
    spoil(optimizer, param)
    assert_nothing_written(optimizer, error, f"{match}.*parameter [01] of group 1")


WRONG_OPTIONS: dict[str, tuple[Spoil, type[Exception] | tuple[type[Exception], ...], str]] = {
    "lr a string": (_group(lr="0.1"), TypeError, "lr"),
    "lr None": (_group(lr=None), TypeError, "lr"),
    "lr complex": (_group(lr=1j), TypeError, "lr"),
    "lr of two elements": (_group(lr=torch.ones(2)), (TypeError, RuntimeError), "lr|scalar"),
    "betas a number": (_group(betas=0.9), TypeError, "betas"),
    "betas a triple": (_group(betas=(0.9, 0.9, 0.9)), (TypeError, ValueError), "betas|values to unpack"),
    "betas strings": (_group(betas=("a", "b")), TypeError, "betas"),
    "eps a list": (_group(eps=[1e-8]), TypeError, "eps"),
    "maximize ambiguous": (_group(maximize=torch.ones(2)), RuntimeError, "[Aa]mbiguous|[Bb]oolean"),
    "no eps": (lambda optimizer, param: optimizer.param_groups[1].pop("eps"), KeyError,
               r"parameter group 1 has no 'eps'; set optimizer\.param_groups\[1\]\['eps'\]"),
    "no params": (lambda optimizer, param: optimizer.param_groups[1].pop("params"), KeyError,
                  r"parameter group 1 has no 'params'; set optimizer\.param_groups\[1\]\['params'\]"),
    "params of ints": (_group(params=[1, 2]), AttributeError, "grad"),
    "params None": (_group(params=None), TypeError, "NoneType"),
    "state a list": (lambda optimizer, param: optimizer.state.update({param: [1]}), TypeError, "must be a dict"),
    "state a number": (lambda optimizer, param: optimizer.state.update({param: 1}), TypeError, "must be a dict"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "error", "match"), WRONG_OPTIONS.values(), ids=WRONG_OPTIONS)
def test_wrong_option(spoil: Spoil, error: Any, match: str) -> None:
    optimizer = adam_with_state()
    params, middle = params_of(optimizer), optimizer.param_groups[1]["params"]
    spoil(optimizer, params[2])
    if "params" in optimizer.param_groups[1] and optimizer.param_groups[1]["params"] is middle:
        assert_nothing_written(optimizer, error, match)
    else:
        values = [p.detach().clone() for p in params]
        with pytest.raises(error, match=match):
            optimizer.step()
        assert all(torch.equal(p, value) for p, value in zip(params, values, strict=True))


def _leaf(param: Tensor, grad: Tensor) -> Tensor:
    param.grad = grad
    return param


FOREIGN: dict[str, tuple[Callable[[], Tensor], str]] = {
    "sparse": (lambda: _leaf(Parameter(torch.ones(3, 2)), torch.eye(3, 2).to_sparse()), "sparse"),
    "complex": (lambda: _leaf(Parameter(torch.ones(3, dtype=torch.complex64)), torch.ones(3) + 0j), "dtype"),
    "integer": (lambda: _leaf(torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)), "dtype"),
    "meta": (lambda: _leaf(Parameter(torch.ones(3, device="meta")), torch.ones(3, device="meta")), "device|memory"),
}


@pytest.mark.parametrize("name", ["SGD", "Adam"])
@pytest.mark.parametrize(("make", "reason"), FOREIGN.values(), ids=FOREIGN)
def test_fused_true_refuses_what_the_kernels_cannot_take(name: str, make: Callable[[], Tensor], reason: str) -> None:
    optimizer = getattr(fusedoptim, name)(groups_of([*make_params([(5,)]), torch.ones(2)]), fused=True, lr=0.1)
    set_grads(optimizer, 1)
    optimizer.param_groups[1]["params"][1] = make()
    assert_nothing_written(optimizer, RuntimeError, rf"fused=True.*parameter 1 of group 1 \(shape \(3.*({reason})")
    assert not optimizer.state, "no state appears either"


@pytest.mark.parametrize("name", ["SGD", "Adam"])
@pytest.mark.parametrize("kind", ["parameter", "gradient"])
def test_fused_true_leaves_subclasses_to_torchs_fused_implementation(name: str, kind: str) -> None:
    results = []
    for module in (fusedoptim, torch.optim):
        cls = Tagged if kind == "gradient" else torch.Tensor
        param = Parameter(torch.ones(2)) if kind == "gradient" else Tagged([1.0, 2]).requires_grad_()
        optimizer = getattr(module, name)([_leaf(param, torch.ones(2).as_subclass(cls))], fused=True, lr=0.1)
        optimizer.step()
        results.append(param.detach().as_subclass(torch.Tensor))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_the_name_of_a_parameter_is_told() -> None:
    optimizer = fusedoptim.SGD(
        [("first", Parameter(torch.ones(2))), ("odd.weight", FOREIGN["complex"][0]())], fused=True
    )
    with pytest.raises(RuntimeError, match=r"odd\.weight"):
        optimizer.step()


@pytest.mark.parametrize("bad", ["zero", True, False, "", "TO_NONE", 0, "none"])
def test_bad_zero_grad(bad: Any) -> None:
    optimizer = adam_with_state()
    assert_nothing_written(optimizer, ValueError, "zero_grad must be None", zero_grad=bad)


def test_a_string_that_is_no_closure() -> None:
    optimizer = adam_with_state()
    cure = "^closure must be callable, got 'to_none'; zero_grad='to_none' is a keyword argument$"
    assert_nothing_written(optimizer, TypeError, cure, closure="to_none")
    assert_nothing_written(optimizer, TypeError, "^closure must be callable, got 3$", closure=3)


@pytest.mark.parametrize("bad", ["to_zero", "to_none", ""])
def test_zero_grad_takes_no_string(bad: Any) -> None:
    optimizer = adam_with_state()
    before = everything_of(optimizer)
    with pytest.raises(TypeError, match=rf"^set_to_none must be .* got {bad!r}; step\(zero_grad=\"to_zero\"\) is what"):
        optimizer.zero_grad(bad)
    assert everything_of(optimizer) == before
    optimizer.zero_grad(1)  # as in torch
    assert all(p.grad is None for p in params_of(optimizer))


def test_zeroing_a_gradient_whose_elements_share_memory() -> None:
    optimizer = fusedoptim.SGD(make_params([(3,), (4,), (5,)]), lr=0.1)
    set_grads(optimizer, 1)
    first, second, third = params_of(optimizer)
    first.grad = (torch.ones(3, requires_grad=True) * 2).requires_grad_()
    second.grad = torch.ones(1).expand(4)
    text = r'refers to a single memory location.* zeroed \(zero_grad="to_none" can drop it\).*parameter 1 of group 0'
    assert_nothing_written(optimizer, RuntimeError, text, zero_grad="to_zero")
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": [FOREIGN["sparse"][0]()]})
    assert_nothing_written(optimizer, RuntimeError, "refers to a single memory location", zero_grad="to_zero")
    optimizer.step(zero_grad="to_none")
    assert first.grad is second.grad is third.grad is None


def test_adam_raises_the_error_of_torch_for_a_sparse_gradient() -> None:
    optimizer = fusedoptim.Adam(groups_of([*make_params([(5,)]), torch.ones(2)]))
    set_grads(optimizer, 1)
    optimizer.param_groups[1]["params"][1] = FOREIGN["sparse"][0]()
    assert_nothing_written(optimizer, RuntimeError, "Adam does not support sparse gradients")


def test_grad_scale_that_is_no_number() -> None:
    optimizer = adam_with_state(fused=True)
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": [FOREIGN["complex"][0]()], "fused": False})
    optimizer.grad_scale = torch.ones(2)
    optimizer.found_inf = torch.zeros(1)
    assert_nothing_written(optimizer, (RuntimeError, ValueError), "one element|scalar")


ODD: dict[str, str] = {
    "zero tensor as gradient": "p.grad = torch._efficientzerotensor((5,))",
    "70 dimensions": "p.data = torch.ones(3).as_strided([1] * 69 + [2], [1] * 69 + [2]); p.grad = torch.ones(p.shape)",
    "empty and expanded": "p.data = torch.ones(1).as_strided((0, 4), (0, 0)); p.grad = p.detach()",
    "empty with odd strides": "p.data = torch.ones(1).as_strided((0, 4), (3, 7)); p.grad = torch.ones(0, 4)",
    "gradient is the parameter": "p.grad = p.detach()",
    "strided parameter, flat gradient": "p.data = torch.ones(9)[::2]",
    "overlapping gradient": "p.data = torch.ones(2, 3); p.grad = torch.arange(4.0).as_strided((2, 3), (1, 1))",
    "gradient shifted by one in the memory of the parameter":
        "m = torch.arange(6.0); p.data = m[:5]; p.grad = m[1:]",
    "lazily negated gradient": "p.grad = (torch.ones(5) * (1 + 2j)).conj().imag",
    "lr NaN": "o.param_groups[0]['lr'] = float('nan')",
    "lr infinite": "o.param_groups[0]['lr'] = float('inf')",
    "listed twice": "o.param_groups[0]['params'] = [p, p]",
    "two parameters of one memory":
        "q = torch.nn.Parameter(p.data); q.grad = torch.ones(5); o.add_param_group({'params': q})",
}  # fmt: skip


def _odd_step(name: str, what: str) -> None:
    results = []
    for module in (fusedoptim, torch.optim):
        p = Parameter(torch.arange(5.0))
        p.grad = torch.ones(5)
        extra = {"momentum": 0.5} if name == "SGD" else {}
        o = getattr(module, name)(
            [p], lr=0.125, weight_decay=0.5, foreach=None if module is fusedoptim else False, **extra
        )
        exec(ODD[what], {"torch": torch}, {"p": p, "o": o})
        for _ in range(3):
            o.step()
        results.append([p.detach().flatten(), *(x.flatten() for _, x in sorted(o.state[p].items()))])
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
@pytest.mark.parametrize("what", ODD)
def test_odd_but_legal_tensors_as_in_torch(name: str, what: str) -> None:
    """In a process of its own, which a bad access to memory might kill."""
    in_child(lambda: _odd_step(name, what))


def test_empty_storage_is_not_read() -> None:
    """As sharded data parallelism frees the memory of a parameter. The kernels must not follow a null pointer."""
    p = Parameter(randn((5,), 1))
    p.grad = torch.ones(5)
    optimizer = fusedoptim.SGD([p], lr=0.1, fused=True)
    p.untyped_storage().resize_(0)
    if fusedoptim.get_backend() == "native":
        with pytest.raises(RuntimeError, match="memory"):
            optimizer.step()
