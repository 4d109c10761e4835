"""Groups, steps that do nothing, and what an optimizer shows of itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import everything_of, params_of, randn, set_grads
from torch.nn import Parameter
from torch_inputs import Input, Problem, assert_close, assert_params_close, of_inputs

ALL = ("native", "native-fused", "reference", "foreach", "for-loop", "differentiable")


def train_both(each: Input, groups: Any, **options: Any) -> Any:
    """Train ours and torch's on groups that are made of a problem; the loss goes where it should."""
    optimizers = []
    for ours in (True, False):
        problem = Problem()
        before = problem.loss().item()
        optimizer = (each.ours if ours else each.torchs)(groups(problem, ours), **options)
        after = problem.train(optimizer, 10)
        assert after > before if each.maximize else after < before
        optimizers.append(optimizer)
    assert_params_close(*optimizers, **{"rtol": 0, "atol": 0} if each.name == "SGD" else {})
    return optimizers[0]


def _flags(each: Input, ours: bool) -> dict[str, Any]:
    options = each.options(flags=ours)
    if not ours:
        options.pop("capturable", None)
        options.update(foreach=False, fused=False)
    return options


@of_inputs()
def test_param_groups_weight_decay(each: Input) -> None:
    """All options are said in the groups; one of them does not decay."""

    def groups(problem: Problem, ours: bool) -> list[dict[str, Any]]:
        options = _flags(each, ours)
        return [
            {"params": [problem.weight], **options},
            {"params": [problem.bias], **copy.deepcopy(options), "weight_decay": 0.0},
        ]

    optimizer = train_both(each, groups)
    decayed = each.options().get("weight_decay", each.info.optim_cls([torch.zeros(1)]).defaults["weight_decay"])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [decayed, 0.0]


@of_inputs()
def test_param_groups_lr(each: Input) -> None:
    """A group whose lr is next to nothing stays where it is."""
    still = randn((2,), 9)

    def groups(problem: Problem, ours: bool) -> list[dict[str, Any]]:
        options = {"lr": 1e-3, **_flags(each, ours)}
        irrelevant = Parameter(still.clone())
        loss = problem.loss
        problem.loss = lambda: loss() + (irrelevant - irrelevant.detach()).sum()  # type: ignore[method-assign]
        return [{"params": problem.params, **options}, {"params": [irrelevant]}]

    optimizer = train_both(each, groups, lr=1e-28)
    (irrelevant,) = optimizer.param_groups[1]["params"]
    assert irrelevant.grad.eq(1).all()
    assert torch.equal(irrelevant, still)


@of_inputs(*ALL)
def test_step_is_noop_when_params_have_no_grad(each: Input) -> None:
    optimizer = each.ours([randn((2, 3), i) for i in range(2)])
    before = everything_of(optimizer)
    loss = torch.tensor([1.0])
    assert optimizer.step(lambda: loss) is loss
    assert everything_of(optimizer) == before
    assert not optimizer.state


@of_inputs(*ALL)
def test_step_is_noop_for_zero_grads(each: Input) -> None:
    """Nothing moves but by weight decay; parameters of no elements and dense ones alike."""
    options = {"weight_decay": 0.0}
    differentiable = each.path.id == "differentiable"
    params = [randn((5, 1), 1), randn((0, 3), 2), randn((), 3)]
    before = [p.clone() for p in params]
    optimizer = each.ours([p if differentiable else Parameter(p) for p in params], **options)
    for _ in range(2):
        for p in params_of(optimizer):
            p.grad = torch.zeros_like(p)
        loss = torch.tensor([1.0])
        assert optimizer.step(lambda loss=loss: loss) is loss
    assert all(torch.equal(p, q) for p, q in zip(params_of(optimizer), before, strict=True))
    assert len(optimizer.state) == (3 if each.name != "SGD" or each.options().get("momentum") else 0)


@of_inputs(*ALL)
def test_optimizer_can_be_printed(each: Input) -> None:
    params = [Parameter(randn((2, 3), i)) for i in range(2)]
    theirs = each.info.optim_cls(params, **each.options())
    assert repr(each.ours(params)) == repr(theirs)


@of_inputs("native", "native-fused", "reference", "for-loop")
def test_deepcopy_copies_all_public_attrs(each: Input) -> None:
    optimizer = each.ours([Parameter(randn((2, 3), i)) for i in range(2)])
    for seed in range(3):
        set_grads(optimizer, seed)
        optimizer.step()
    other = copy.deepcopy(optimizer)
    names, theirs = ({k for k in vars(x) if not k.startswith("_")} for x in (optimizer, other))
    assert names == theirs >= {"defaults", "state", "param_groups"}
    set_grads(optimizer, 3)
    set_grads(other, 3)
    other.step()
    optimizer.step()
    assert_params_close(other, optimizer, rtol=0, atol=0)


@of_inputs()
def test_non_empty_state(each: Input) -> None:
    """The keys and shapes are those of torch's optimizer; SGD without momentum has none."""
    model = torch.nn.Linear(5, 5)
    optimizer = each.ours(model.parameters())
    model(randn((2, 5), 1)).sum().backward()
    theirs = each.torchs([Parameter(p.detach().clone()) for p in model.parameters()])
    for p, q in zip(model.parameters(), params_of(theirs), strict=True):
        q.grad = p.grad.clone()
    optimizer.step()
    theirs.step()
    for p, q in zip(model.parameters(), params_of(theirs), strict=True):
        mine, wanted = optimizer.state.get(p) or {}, theirs.state.get(q) or {}
        assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in wanted.items()}
        assert (len(mine) > 0) == (each.name != "SGD" or "momentum" in each.options())
        assert_close(p, q)


@pytest.mark.parametrize("gradients", ["late", "missing", "back again"])
@of_inputs("native", "native-fused", "reference")
def test_late_gradients(each: Input, gradients: str) -> None:
    """Step counts and momentum belong to the parameter: it is what it would be, had its other steps never been."""
    taken = {"late": [3, 4], "missing": [0], "back again": [0, 1, 4]}[gradients]
    first, alone = Parameter(randn((7,), 1)), Parameter(randn((7,), 1))
    optimizer, other = each.ours([Parameter(randn((3,), 2)), first]), each.ours([alone])
    for step in range(5):
        set_grads(optimizer, step)
        alone.grad = first.grad.clone() if step in taken else None
        first.grad = alone.grad if alone.grad is None else first.grad
        optimizer.step()
        other.step()
    assert torch.equal(first, alone)
    assert float((optimizer.state[first] or {}).get("step", len(taken))) == len(taken)
