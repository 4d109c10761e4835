"""``explain_step`` says who takes each parameter, as the next step then has it, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import helpers
import pytest
import torch
from helpers import count_calls, everything_of, make_params, params_of, set_grads, torch_steps
from odd_mappings import FromFile
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

import fusedoptim
from fusedoptim import native as compiled
from fusedoptim.step import FusedStep

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend", "one_thread")

KERNELS = {"native": "fast path", "reference": "reference"}
GENERAL = {"native": "general path", "reference": "reference"}
TORCH = dict.fromkeys(KERNELS, "torch")
NOBODY = dict.fromkeys(KERNELS, "nobody")


class Sub(Tensor):
    """A subclass of no meaning."""


class Passing(TorchDispatchMode):
    """Sees each operation and changes none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class OwnInitGroup(fusedoptim.Adam):
    """Overrides a method that torch's step calls."""

    def _init_group(self, *args: Any) -> Any:
        return super()._init_group(*args)


def trained(second: Tensor, steps: int = 1, cls: type[Any] = fusedoptim.Adam, **options: Any) -> Any:
    """An optimizer with a plain parameter and another in a group of its own, with new gradients."""
    optimizer = cls([{"params": make_params([(4, 3)])}, {"params": [second], **options}])
    for seed in range(steps + 1):
        if seed:
            optimizer.step()
        set_grads(optimizer, seed)
    return optimizer


def plain() -> Parameter:
    return Parameter(torch.ones(2, 3))


def strided_gradient() -> Any:
    optimizer = trained(plain())
    params_of(optimizer)[1].grad = torch.ones(3, 2).t()
    return optimizer


def row_with_another_stride() -> Any:
    """Of the dimension that has one place only, where no stride matters."""
    optimizer = trained(Parameter(torch.ones(1, 3)))
    params_of(optimizer)[1].grad = torch.ones(3).as_strided((1, 3), (1, 1))
    return optimizer


def shared_count() -> Any:
    optimizer = trained(plain())
    first, second = (optimizer.state[p] for p in params_of(optimizer))
    second["step"] = first["step"]
    return optimizer


def sparse_gradient(name: str = "SGD", fused: bool | None = None) -> Any:
    optimizer = trained(plain(), cls=getattr(fusedoptim, name), fused=fused)
    params_of(optimizer)[1].grad = torch.eye(2, 3).to_sparse()
    return optimizer


def opaque_state() -> Any:
    optimizer = trained(plain())
    optimizer.state = FromFile(optimizer.state)
    return optimizer


def opaque_state_of_one() -> Any:
    optimizer = trained(plain())
    second = params_of(optimizer)[1]
    optimizer.state[second] = FromFile(optimizer.state[second])
    return optimizer


class Case(NamedTuple):
    """An optimizer, who takes its two parameters on each backend, and a part of each reason why."""

    make: Callable[[], Any]
    first: dict[str, str]
    second: dict[str, str]
    reasons: dict[str, tuple[str, str]]
    during: Callable[[], AbstractContextManager[Any]] = nullcontext


def both(first: str, second: str) -> dict[str, tuple[str, str]]:
    return dict.fromkeys(KERNELS, (first, second))


def native(first: str, second: str, reference: str = "") -> dict[str, tuple[str, str]]:
    return {"native": (first, second), "reference": ("", reference)}


CASES = {
    "fast": Case(lambda: trained(plain()), KERNELS, KERNELS, both("", "")),
    "stride of no matter": Case(row_with_another_stride, KERNELS, KERNELS, both("", "")),
    "shared count": Case(shared_count, GENERAL, GENERAL, native(*["tensors of the step share memory"] * 2)),
    "first step": Case(lambda: trained(plain(), 0), GENERAL, GENERAL, native("no state yet", "no state yet")),
    "complex": Case(
        lambda: trained(Parameter(torch.ones(2, dtype=torch.complex64))),
        KERNELS, TORCH, both("", "its dtype is not float64, float32, bfloat16 or float16"),
    ),
    "strided gradient": Case(
        strided_gradient, KERNELS, GENERAL, native("", "its gradient has another shape or strides")
    ),
    "foreach": Case(
        lambda: trained(plain(), foreach=True),
        KERNELS, TORCH, both("", "its group asks for torch's own implementation: foreach=True"),
    ),
    "fused=False": Case(
        lambda: trained(plain(), fused=False, foreach=False), KERNELS, TORCH, both("", "implementation: fused=False")
    ),
    "differentiable": Case(
        lambda: trained(plain(), 0, differentiable=True),
        GENERAL, TORCH, native("no state yet", *["implementation: differentiable=True"] * 2),
    ),
    "sparse": Case(sparse_gradient, KERNELS, TORCH, both("", "its gradient is sparse")),
    "subclass": Case(
        lambda: trained(torch.ones(2).as_subclass(Sub).requires_grad_()), KERNELS, TORCH, both("", "a tensor subclass")
    ),
    "overridden": Case(
        lambda: trained(plain(), cls=OwnInitGroup), TORCH, TORCH, both(*["_init_group is overridden"] * 2)
    ),
    "mode": Case(
        lambda: trained(plain()), TORCH, TORCH, both(*["a mode of torch is active"] * 2), Passing
    ),
    "opaque state": Case(opaque_state, TORCH, TORCH, both(*["the optimizer's state is a FromFile"] * 2)),
    "opaque state of one": Case(opaque_state_of_one, KERNELS, TORCH, native("", "its state is a mapping", "its state")),
    "expanded": Case(
        lambda: trained(Parameter(torch.ones(1).expand(3)), 0),
        GENERAL, NOBODY, native("no state yet", "more than one element", "more than one element"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_who_takes_what_and_why(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, use = case.make(), fusedoptim.get_backend()
    if use == "native" and compiled.direct_error:
        pytest.skip(compiled.direct_error)
    before = everything_of(optimizer)
    with case.during():
        explained = fusedoptim.explain_step(optimizer)
    assert everything_of(optimizer) == before
    takers = [each.taken_by for each in explained]
    assert takers == [case.first[use], case.second[use]]
    for index, (each, reason) in enumerate(zip(explained, case.reasons[use], strict=True)):
        assert each.param.startswith(f"parameter 0 of group {index} (shape ")
        assert reason in each.reason
        assert bool(each.reason) == bool(reason)
        assert str(each) == f"{each.param}: {each.taken_by}" + (f", since {each.reason}" if reason else "")
    assert str(explained) == "\n".join(map(str, explained))

    whole, general = torch_steps(monkeypatch), count_calls(monkeypatch, FusedStep, "_general_step")
    with case.during(), pytest.raises(RuntimeError, match="more than one") if "nobody" in takers else nullcontext():
        optimizer.step()
    left = [params_of(optimizer) if params is None else [p for group in params for p in group] for params, *_ in whole]
    assert [id(p) for group in left for p in group] == [
        id(p) for p, who in zip(params_of(optimizer), takers, strict=True) if who == "torch"
    ]
    assert bool(general) == (takers not in (["fast path"] * 2, ["torch"] * 2))


def test_parameters_without_gradients_are_not_listed() -> None:
    optimizer = trained(plain())
    params_of(optimizer)[0].grad = None
    (only,) = fusedoptim.explain_step(optimizer)
    assert only.param.startswith("parameter 0 of group 1")
    params_of(optimizer)[1].grad = None
    assert fusedoptim.explain_step(optimizer) == []
    assert str(fusedoptim.explain_step(optimizer)).startswith("no parameter has a gradient")


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("fused", [None, True, False])
def test_nobody_takes_a_sparse_gradient_for_adam(name: str, fused: bool | None) -> None:
    optimizer = sparse_gradient(name, fused)
    first, second = fusedoptim.explain_step(optimizer)
    assert first.taken_by in ("fast path", "general path", "reference")
    why = f"its gradient is sparse, which torch's {name} refuses as well: use SparseAdam"
    assert (second.taken_by, second.reason) == ("nobody", why)
    with pytest.raises(RuntimeError, match="SparseAdam") as raised:
        optimizer.step()
    assert "with fused=None" not in str(raised.value)


@pytest.mark.parametrize("name", ["Adafactor", "SparseAdam"])
def test_of_an_optimizer_that_is_torchs_there_is_nothing_to_explain(name: str) -> None:
    optimizer = getattr(fusedoptim, name)(make_params())
    with pytest.raises(TypeError, match=f"got {name}; it is torch's own {name}, of which there is nothing to explain$"):
        fusedoptim.explain_step(optimizer)


def test_torchs_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match=r"one of fusedoptim's, got Adam; fusedoptim\.from_torch makes one"):
        fusedoptim.explain_step(torch.optim.Adam(make_params()))


def test_options_that_no_step_can_be_taken_with() -> None:
    optimizer = trained(plain())
    optimizer.param_groups[1]["lr"] = None
    _, second = fusedoptim.explain_step(optimizer)
    assert second.taken_by == "nobody"
    assert "lr" in second.reason


def test_params_that_can_be_read_once_are_the_steps() -> None:
    optimizer = trained(plain())
    optimizer.param_groups[1]["params"] = iter(optimizer.param_groups[1]["params"])
    with pytest.raises(TypeError, match="params of group 1 can be read once only"):
        fusedoptim.explain_step(optimizer)
    assert len(list(optimizer.param_groups[1]["params"])) == 1


@pytest.mark.parametrize(
    ("second", "taker", "reason"),
    [
        (Parameter(torch.ones(2, dtype=torch.complex64)), "nobody", "fused=True, but its dtype is not"),
        (torch.ones(2).as_subclass(Sub).requires_grad_(), "torch", "it "),
    ],
    ids=["complex", "subclass"],
)
def test_what_fused_demands(second: Tensor, taker: str, reason: str) -> None:
    optimizer = trained(second)
    optimizer.param_groups[1]["fused"] = True
    explained = fusedoptim.explain_step(optimizer)[1]
    assert explained.taken_by == taker
    assert explained.reason.startswith(reason)
