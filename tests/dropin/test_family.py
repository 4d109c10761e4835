"""What the tests of SGD, Adam and AdamW ask of drivers, asked once of every other optimizer."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import helpers
import pytest
import torch
from cases import CASES, Case, of_cases
from helpers import OF_TORCH, assert_optimizers_match, make_params, params_of, set_grads, torch_steps
from torch.nn import Parameter

import fusedoptim
from fusedoptim import Lion, Rprop
from fusedoptim.reference.rule import options_of

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend")

OTHERS = [case for case in CASES if case.cls.__name__ not in OF_TORCH[:3]]
EVERYTHING = list({case.cls: case for case in OTHERS if "everything" in case.id}.values())
of_everything = of_cases(EVERYTHING)


def stepped(case: Case, steps: int = 2, **settings: Any) -> Any:
    optimizer = case.make(make_params(), **settings)
    for seed in range(steps):
        set_grads(optimizer, seed)
        optimizer.step()
    return optimizer


@of_everything
def test_files_go_both_ways(case: Case) -> None:
    """Keys, order and dtypes are torch's, as far as torch has the class."""
    ours, theirs = stepped(case), case.make_torch(make_params())
    for seed in range(2):
        set_grads(theirs, seed)
        theirs.step()
    assert list(ours.state[params_of(ours)[0]]) == list(theirs.state[params_of(theirs)[0]])
    assert ours.state_dict()["param_groups"][0].keys() == theirs.state_dict()["param_groups"][0].keys()
    there = case.make_torch(make_params())
    there.load_state_dict(ours.state_dict())
    back = case.make(make_params())
    back.load_state_dict(copy.deepcopy(there.state_dict()))
    for p, q in zip(params_of(ours), params_of(back), strict=True):
        q.data.copy_(p)
    for optimizer in (ours, back):
        set_grads(optimizer, 7)
        optimizer.step()
    assert_optimizers_match(ours, back, exact=True)


@of_everything
@pytest.mark.parametrize("way", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_copies_go_on(case: Case, way: Any) -> None:
    one = stepped(case)
    other = way(one)
    for optimizer in (one, other):
        set_grads(optimizer, 5)
        optimizer.step()
    assert_optimizers_match(one, other, exact=True)


@of_everything
def test_a_damaged_file_is_refused_whole(case: Case) -> None:
    optimizer = stepped(case)
    name = next(name for name in options_of(case.rule.update) if name in ("lr", "etas"))
    saved = optimizer.state_dict()
    saved["param_groups"][0][name] = "much"
    with pytest.raises(ValueError, match=rf"param_groups'\]\[0\]\['{name}'\]: must be .*Nothing was loaded"):
        optimizer.load_state_dict(saved)
    state = next(name for name in case.rule.all_states() if name in optimizer.state[params_of(optimizer)[0]])
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0][state] = torch.zeros(3)
    with pytest.raises(ValueError, match=rf"\['{state}'\].*has shape \(3,\).*Nothing was loaded"):
        optimizer.load_state_dict(saved)


@of_everything
def test_complex_parameters_are_left_to_a_loop(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = torch_steps(monkeypatch)
    make = [torch.randn(5, dtype=torch.complex64, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    optimizer, theirs = (
        of([Parameter(make[0].clone()), Parameter(torch.ones(3))]) for of in (case.make, case.make_torch)
    )
    for grad in make[1:]:
        for each in (optimizer, theirs):
            p, q = params_of(each)
            p.grad, q.grad = grad.clone(), torch.ones(3)
            each.step()
    assert calls
    assert_optimizers_match(optimizer, theirs, exact=False)


@of_everything
def test_sparse_gradients_are_refused_or_torchs(case: Case) -> None:
    p = Parameter(torch.ones(4, 3))
    p.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 3), (4, 3), check_invariants=True)
    optimizer = case.make([p])
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert torch.equal(p, before)


@of_everything
def test_clipping_averages_and_zeroing(case: Case) -> None:
    """As in steps of their own."""
    one = case.make(make_params(), max_grad_norm=0.5, ema_decay=0.9)
    other = case.make(make_params())
    averages: list[Any] = []
    for seed in range(3):
        for optimizer in (one, other):
            set_grads(optimizer, seed)
        fusedoptim.clip_grad_norm_(params_of(other), 0.5)
        one.step(zero_grad="to_zero")
        other.step()
        moved = [p.detach().clone() for p in params_of(other)]
        averages = (
            moved
            if not averages
            else [fusedoptim.reference.average(a, p, 0.9) for a, p in zip(averages, moved, strict=True)]
        )
    for p, q, average in zip(params_of(one), params_of(other), averages, strict=True):
        assert torch.equal(p, q)
        assert torch.equal(one.state[p]["ema"], average)
        assert not p.grad.any()


STORAGES: dict[str, dict[str, Any]] = {
    "bf16 state": {"state_dtype": torch.bfloat16},
    "8bit": {"state_dtype": "8bit"},
    "master, 8bit": {"master_weights": True, "state_dtype": "8bit"},
    "kahan": {"kahan_sum": True},
    "stochastic": {"stochastic_rounding": True},
}


@of_everything
@pytest.mark.parametrize("settings", STORAGES.values(), ids=STORAGES)
def test_storages(case: Case, settings: dict[str, Any]) -> None:
    """Bits of the reference, in a step that resumes from a file too; 8 bits only where the rule can do with them."""

    def make() -> Any:
        return case.make([Parameter(helpers.randn((70, 100), 1, torch.bfloat16))], **settings)

    if case.rule.exact and settings.get("state_dtype") == "8bit":
        with pytest.raises(ValueError, match=rf'state_dtype must not be "8bit" for ({"|".join(case.rule.exact)})'):
            make()
        return
    optimizers = [make(), make()]
    for seed in range(4):
        if seed == 2:
            saved = copy.deepcopy(optimizers[0].state_dict())
            resumed = make()
            resumed.load_state_dict(saved)
            params_of(resumed)[0].data.copy_(params_of(optimizers[0])[0])
            optimizers[0] = resumed
        for optimizer, name in zip(optimizers, (fusedoptim.get_backend(), "reference"), strict=True):
            set_grads(optimizer, seed)
            with fusedoptim.set_backend(name):
                optimizer.step()
        assert_optimizers_match(*optimizers, exact=True)


@of_everything
def test_verified_and_explained(case: Case) -> None:
    optimizer = stepped(case)
    with fusedoptim.verify(optimizer) as found:
        set_grads(optimizer, 9)
        optimizer.step()
    assert found.checked
    assert found.differences == []
    path = (
        "fast path" if fusedoptim.get_backend() == "native" and fusedoptim.build_info()["direct_error"] is None else ""
    )
    assert all(not path or each.taken_by == path for each in fusedoptim.explain_step(optimizer))


@pytest.mark.parametrize("name", OF_TORCH[3:])
def test_converted_in_place(name: str) -> None:
    theirs, ours = (getattr(module, name)(make_params()) for module in (torch.optim, fusedoptim))
    converted = fusedoptim.from_torch(theirs)
    assert type(converted) is getattr(fusedoptim, name)
    for optimizer in (converted, ours):
        set_grads(optimizer, 1)
        optimizer.step()
    assert_optimizers_match(converted, ours, exact=True)


# ---- where torch's own go wrong -------------------------------------------------------------------------------------


def test_a_centered_variance_is_never_negative() -> None:
    """Equal gradients have no variance; torch's rounds to less than none for some of them."""
    made = {module: Parameter(torch.linspace(0.1, 3, 999)) for module in (torch.optim, fusedoptim)}
    for module, p in made.items():
        optimizer = module.RMSprop([p], centered=True, alpha=0.9)
        for _ in range(400):
            p.grad = torch.linspace(1e-3, 7, 999)
            optimizer.step()
    assert made[torch.optim].isnan().any()
    assert made[fusedoptim].isfinite().all()


def test_signs_of_small_gradients_do_not_underflow() -> None:
    p = Parameter(torch.zeros(2))
    optimizer = Rprop([p], lr=0.5, step_sizes=(1e-6, 50))
    for sign in (1.0, 1.0, -1.0):
        p.grad = torch.tensor([1e-30, 1.0]) * sign
        optimizer.step()
    sizes = optimizer.state[p]["step_size"]
    assert sizes[0] == sizes[1] == torch.tensor(0.5) * 1.2 * 0.5


# ---- Lion -----------------------------------------------------------------------------------------------------------


def test_lion_is_that_of_lion_pytorch() -> None:
    theirs = pytest.importorskip("lion_pytorch").Lion
    for options in ({}, {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95)}, {"lr": 0.01, "weight_decay": 0.1}):
        for decoupled in (False, True):
            both = [cls(make_params(), **options, decoupled_weight_decay=decoupled) for cls in (Lion, theirs)]
            for seed in range(3):
                for optimizer in both:
                    set_grads(optimizer, seed)
                    optimizer.step()
                assert_optimizers_match(*both, exact=True)
            both[0].load_state_dict(both[1].state_dict())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -1.0}, "lr must be at least 0"),
        ({"lr": 0.0, "decoupled_weight_decay": True}, "lr must be above 0 with decoupled_weight_decay"),
        ({"betas": (0.9, 1.0)}, "betas must be at least 0 and less than 1"),
    ],
)
def test_what_lion_refuses(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Lion(make_params(), **options)


@pytest.mark.parametrize("name", ["Adam", "Adamax", "Lion", "RAdam"])
@pytest.mark.parametrize("position", [0, 1])
def test_a_beta_that_a_group_cannot_have_raises_in_the_step(name: str, position: int) -> None:
    optimizer = getattr(fusedoptim, name)(make_params())
    set_grads(optimizer, 1)
    for wrong in (1.0, -0.1):
        optimizer.param_groups[0]["betas"] = (wrong, 0.9) if position == 0 else (0.9, wrong)
        with pytest.raises(ValueError, match=rf"betas\[{position}\] of parameter group 0 must be .* less than 1, got"):
            optimizer.step()
