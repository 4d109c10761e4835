"""Damaged state dicts are refused by name, and change nothing; what torch loads and trains with is loaded."""

from __future__ import annotations

import copy
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from helpers import assert_optimizers_match, everything_of, make_params, params_of, set_grads
from torch import Tensor
from torch.nn import Parameter

import fusedoptim

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend", "one_thread")

Damage = Callable[[dict[str, Any]], Any]
SHAPES = [(4, 33), (7,), (2, 3, 4, 5)]
NAMES = ["body", "bias", "conv"]


def make(name: str = "Adam", module: Any = fusedoptim, steps: int = 2, **options: Any) -> Any:
    named = list(zip(NAMES, make_params(SHAPES), strict=True))
    optimizer = getattr(module, name)(named, **options)
    for seed in range(steps):
        set_grads(optimizer, seed)
        optimizer.step()
    return optimizer


def state(key: str, value: Any) -> Damage:
    """Damages the state of the second parameter."""
    return lambda saved: saved["state"][1].update({key: value})


def group(key: str, value: Any) -> Damage:
    return lambda saved: saved["param_groups"][0].update({key: value})


def deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def cyclic() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def freed() -> Tensor:
    x = torch.ones(7)
    x.untyped_storage().resize_(0)
    return x


def nested() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


def quantised() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(7), 0.1, 0, torch.qint8)


class Raising:
    """An object that no question can be asked."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("hostile")

    def __repr__(self) -> str:
        raise RuntimeError("hostile")

    def __float__(self) -> float:
        raise RuntimeError("hostile")

    def __bool__(self) -> bool:
        raise RuntimeError("hostile")


BAD_TENSORS: dict[str, Any] = {
    "another shape": torch.ones(8),
    "fewer dims": torch.ones(()),
    "more dims": torch.ones(1, 7),
    "empty": torch.ones(0),
    "integers": torch.ones(7, dtype=torch.int64),
    "booleans": torch.ones(7, dtype=torch.bool),
    "complex": torch.ones(7, dtype=torch.complex64),
    "quantised": quantised(),
    "sparse": torch.ones(7).to_sparse(),
    "meta": torch.ones(7, device="meta"),
    "nested": nested(),
    "expanded": torch.ones(1).expand(7),
    "overlapping": torch.ones(20).as_strided((7,), (0,)),
    "freed": freed(),
    "string": "exp_avg",
    "list": [0.0] * 7,
    "number": 0.5,
    "object": Raising(),
    "None": None,
    "deep": deep(100_000),
}
BAD_STEPS: dict[str, Any] = {
    "NaN": math.nan,
    "NaN tensor": torch.tensor(math.nan),
    "inf": math.inf,
    "negative": -1,
    "negative tensor": torch.tensor(-1.0),
    "huge": 1e30,
    "huge tensor": torch.tensor(1e30),
    "huge int": 10**400,
    "just too large": 2**53 + 2,
    "just too large, a tensor": torch.tensor(2.0**53 + 2.0**30),
    "two": torch.ones(2),
    "none at all": torch.ones(0),
    "complex": torch.tensor(1j),
    "complex number": 1j,
    "boolean": torch.tensor(True),
    "meta": torch.ones((), device="meta"),
    "sparse": torch.ones(1).to_sparse(),
    "string": "5",
    "bytes": b"5",
    "list": [5],
    "object": Raising(),
    "None": None,
}
NO_NUMBERS: dict[str, Any] = {
    "string": "0.1",
    "None": None,
    "NaN": math.nan,
    "inf": math.inf,
    "huge": 1e300,
    "huge int": 10**400,
    "list": [0.1],
    "complex": 1j,
    "two": torch.ones(2),
    "NaN tensor": torch.tensor(math.nan),
    "meta": torch.ones((), device="meta"),
    "object": Raising(),
    "deep": deep(100_000),
}


def _second_alias(saved: dict[str, Any]) -> None:
    saved["state"][1]["exp_avg"] = saved["state"][0]["exp_avg_sq"].view(-1)[100:107]


def _columns(saved: dict[str, Any]) -> None:
    both = torch.ones(8, 2)  # a column, and one that begins a row later
    saved["state"][1].update(exp_avg=both[:7, 0], exp_avg_sq=both[1:, 0])


def _ends_meet(saved: dict[str, Any]) -> None:
    buffer = torch.ones(20)  # the last element of one, which takes every other, is the first of the other
    saved["state"][1].update(exp_avg=buffer[:13:2], exp_avg_sq=buffer[12:19])


ADAM: dict[str, tuple[Damage, str]] = {
    **{f"exp_avg {what}": (state("exp_avg", value), "exp_avg") for what, value in BAD_TENSORS.items()},
    **{f"step {what}": (state("step", value), "step") for what, value in BAD_STEPS.items()},
    **{f"lr {what}": (group("lr", value), "lr") for what, value in NO_NUMBERS.items()},
    **{f"eps {what}": (group("eps", value), "eps") for what, value in NO_NUMBERS.items()},
    **{
        f"betas {what}": (group("betas", (0.9, value)), r"betas")
        for what, value in [*NO_NUMBERS.items(), ("one", 1.0), ("negative", -0.1)]
    },
    "lr negative": (group("lr", -0.1), r"\['lr'\]: must be a number from 0 .* got -0.1"),
    "eps negative": (group("eps", -1e-12), r"\['eps'\]: must be a number from 0 .* got -1e-12"),
    "weight_decay negative": (group("weight_decay", -0.1), "weight_decay"),
    "one beta": (group("betas", (0.9,)), "betas"),
    "three betas": (group("betas", (0.9, 0.9, 0.9)), "betas"),
    "betas a number": (group("betas", 0.9), "betas"),
    "betas None": (group("betas", None), "betas"),
    "amsgrad a string": (group("amsgrad", "no"), "amsgrad"),
    "amsgrad two": (group("amsgrad", torch.zeros(2)), "amsgrad"),
    "maximize an object": (group("maximize", Raising()), "maximize"),
    "amsgrad without its state": (group("amsgrad", True), "max_exp_avg_sq"),
    "names too few": (group("param_names", ["a"]), "param_names"),
    "own entry deep": (group("mine", deep(100_000)), "mine"),
    "own entry of 60 levels": (group("mine", deep(60)), "mine.*more than 50 levels"),
    "own entry cyclic": (group("mine", cyclic()), "mine"),
    "own state cyclic": (state("mine", cyclic()), "mine"),
    "no lr": (lambda saved: saved["param_groups"][0].pop("lr"), "no 'lr'"),
    "no betas": (lambda saved: saved["param_groups"][0].pop("betas"), "no 'betas'"),
    "no step": (lambda saved: saved["state"][1].pop("step"), "step"),
    "no exp_avg_sq": (lambda saved: saved["state"][1].pop("exp_avg_sq"), "exp_avg_sq"),
    "one tensor twice": (
        lambda saved: saved["state"][1].update(exp_avg=saved["state"][1]["exp_avg_sq"]),
        "shares memory with state",
    ),
    "a view of another's": (_second_alias, "exp_avg.*shares memory with state.*"),
    "columns that meet": (_columns, "shares memory with state"),
    "ends that meet": (_ends_meet, "shares memory with state"),
    "unknown index": (lambda saved: saved["state"].update({17: {}}), "belong to no parameter.*: 17; remove"),
    "state a list": (lambda saved: saved.update(state=[]), "'state'"),
    "entry a list": (lambda saved: saved["state"].update({1: [1]}), "bias"),
    "entry None": (lambda saved: saved["state"].update({1: None}), "bias"),
    "groups a dict": (lambda saved: saved.update(param_groups={}), "param_groups"),
    "groups None": (lambda saved: saved.update(param_groups=None), "param_groups"),
    "group a list": (lambda saved: saved.update(param_groups=[[]]), "param_groups"),
    "no groups": (lambda saved: saved.update(param_groups=[]), "different number of parameter groups: 0"),
    "group twice": (lambda saved: saved["param_groups"].append(saved["param_groups"][0]), "groups: 2.* has 1"),
    "params missing": (lambda saved: saved["param_groups"][0].pop("params"), "params"),
    "params None": (group("params", None), "params"),
    "one parameter more": (group("params", [0, 1, 2, 3]), "size of optimizer's group: 4 .* has 3"),
    "one parameter fewer": (group("params", [0, 1]), "size of optimizer's group: 2 .* has 3"),
    "one index twice": (group("params", [0, 1, 1]), r"\['params'\]: has 1 \(int\) for parameter 2 of group 0 \('conv'"),
    "an index that is none": (group("params", [0, 1, [2]]), r"\['params'\]\[2\]"),
    "no state": (lambda saved: saved.pop("state"), "and not 'state' and 'param_groups'"),
    "no param_groups": (lambda saved: saved.pop("param_groups"), "and not 'state' and 'param_groups'"),
}  # fmt: skip


def facts(optimizer: Any) -> Any:
    attributes = {key: id(value) for key, value in vars(optimizer).items()}
    inside = [(id(g), {key: id(value) for key, value in g.items()}) for g in optimizer.param_groups]
    entries = {id(p): id(optimizer.state[p]) for p in params_of(optimizer) if p in optimizer.state}
    return attributes, inside, entries, everything_of(optimizer)


def assert_refused(optimizer: Any, saved: Any, words: str) -> str:
    before = facts(optimizer)
    with pytest.raises(ValueError, match=words) as caught:
        optimizer.load_state_dict(saved)
    assert facts(optimizer) == before
    assert str(caught.value).endswith("Nothing was loaded")
    assert len(str(caught.value)) < 600
    return str(caught.value)


@pytest.mark.parametrize(("damage", "words"), ADAM.values(), ids=ADAM)
def test_damage_is_refused_and_changes_nothing(damage: Damage, words: str) -> None:
    optimizer = make(fused=True)
    saved = make(steps=1).state_dict()  # its tensors are not those of the optimizer
    damage(saved)
    text = assert_refused(optimizer, saved, words)
    if "['state'][1]" in text or "] of parameter 1" in text:
        assert "parameter 1 of group 0 ('bias', shape (7,), torch.float32, cpu)" in text


@pytest.mark.parametrize("what", sorted(BAD_TENSORS.keys() - {"None", "sparse"}))  # which SGD's may be
def test_damage_of_a_momentum_buffer(what: str) -> None:
    optimizer = make("SGD", lr=0.1, momentum=0.9)
    saved = make("SGD", lr=0.1, momentum=0.9).state_dict()
    state("momentum_buffer", BAD_TENSORS[what])(saved)
    assert "'bias'" in assert_refused(optimizer, saved, "momentum_buffer")


def test_damage_of_the_options_of_sgd() -> None:
    """Dampening alone may be negative, as the constructor lets it be."""
    optimizer = make("SGD", lr=0.1, momentum=0.9)
    for key, value in (("momentum", -0.1), ("momentum", 1e39), ("dampening", math.nan), ("nesterov", "no")):
        saved = make("SGD", lr=0.1, momentum=0.9).state_dict()
        group(key, value)(saved)
        assert_refused(optimizer, saved, key)
    saved["param_groups"][0].update(nesterov=False, dampening=-0.5)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["dampening"] == -0.5


def test_the_state_of_another_optimizer() -> None:
    assert_refused(make("SGD", lr=0.1), make("Adam").state_dict(), "no 'momentum'; was it saved by another optimizer")
    assert_refused(make("Adam"), make("SGD", lr=0.1).state_dict(), "no 'betas'")


@pytest.mark.parametrize("saved", [None, [], "file", 3, {"model": {}, "optimizer": {}}], ids=str)
def test_what_is_no_state_dict(saved: Any) -> None:
    assert_refused(make(), saved, "^state_dict: ")


def test_state_that_is_the_parameter_itself() -> None:
    optimizer = make()
    saved = make().state_dict()
    saved["state"][1]["exp_avg"] = params_of(optimizer)[1].detach()
    assert_refused(optimizer, saved, r"exp_avg.*shares memory with parameter 1 of group 0 \('bias'")


@pytest.mark.parametrize("kind", ["pre", "post"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_a_hook_raises_changes_nothing(kind: str, error: type[BaseException]) -> None:
    optimizer = make(fused=True)

    def fail(*args: Any) -> None:
        optimizer.param_groups[0]["lr"] = 5.0
        optimizer.add_param_group({"params": make_params([(2,)]), "param_names": ["late"]})
        optimizer.mine = 1
        raise error("of the hook")

    getattr(optimizer, f"register_load_state_dict_{kind}_hook")(fail)
    before = facts(optimizer)
    with pytest.raises(error, match="of the hook"):
        optimizer.load_state_dict(make(steps=1).state_dict())
    assert facts(optimizer) == before


def test_what_torch_raises_changes_nothing() -> None:
    """An entry of the user's own, which only torch looks into."""

    class Items(list):  # type: ignore[type-arg]
        def __init__(self, *items: Any) -> None:
            raise RuntimeError("cannot be made")

    optimizer = make(fused=True)
    saved = make(steps=1).state_dict()
    saved["state"][2]["mine"] = Items.__new__(Items)
    before = facts(optimizer)
    with pytest.raises(RuntimeError, match="cannot be made"):
        optimizer.load_state_dict(saved)
    assert facts(optimizer) == before


# ---- what torch loads and trains with --------------------------------------------------------------------------------


class Subclass(Tensor):
    """A tensor by another name."""


def each_entry(change: Callable[[Tensor], Tensor]) -> Damage:
    def damage(saved: dict[str, Any]) -> None:
        for entry in saved["state"].values():
            entry.update({key: change(value) for key, value in entry.items() if key != "step"})

    return damage


def _columns_of_one(saved: dict[str, Any]) -> None:
    for entry in saved["state"].values():
        both = torch.stack([entry["exp_avg"], entry["exp_avg_sq"]], -1)
        entry.update(exp_avg=both[..., 0], exp_avg_sq=both[..., 1])


def _one_buffer(saved: dict[str, Any]) -> None:
    flat = torch.cat([e[key].flatten() for e in saved["state"].values() for key in ("exp_avg", "exp_avg_sq")])
    at = 0
    for entry in saved["state"].values():
        for key in ("exp_avg", "exp_avg_sq"):
            entry[key] = flat[at : at + entry[key].numel()].view(entry[key].shape)
            at += entry[key].numel()


GOOD: dict[str, Damage] = {
    "nothing": lambda saved: None,
    "requires_grad": each_entry(lambda x: x.clone().requires_grad_()),
    "Parameter": each_entry(lambda x: Parameter(x.clone())),
    "subclass": each_entry(lambda x: x.clone().as_subclass(Subclass)),
    "float64": each_entry(lambda x: x.double()),
    "float16 from float16": each_entry(lambda x: x.to(torch.bfloat16).float()),
    "transposed": each_entry(lambda x: x.mT.contiguous().mT if x.ndim > 1 else x),
    "every other": each_entry(lambda x: torch.stack([x, x], -1)[..., 0]),
    "columns of one matrix": _columns_of_one,
    "views of one buffer": _one_buffer,
    "expanded, of another dtype": each_entry(lambda x: torch.full((), 0.25, dtype=torch.float64).expand(x.shape)),
    "no state": lambda saved: saved.update(state={}),
    "one without state": lambda saved: saved["state"].pop(1),
    "an empty entry": lambda saved: saved["state"].update({1: {}}),
    "own entries of a state": state("mine", {"a": [1, torch.ones(3, dtype=torch.int64)], "b": 3}),
    "own entries of the state": lambda saved: saved["state"].update(mine={"a": 1}),
    "own entries of a group": group("mine", {"a": ["b"] * 10}),
    "own entry of 40 levels": group("mine", deep(40)),
    "betas a list": group("betas", [0.8, 0.95]),
    "Tensor lr": group("lr", torch.tensor(0.02)),
    "Tensor lr, one element": group("lr", torch.tensor([0.02])),
    "lr 0": group("lr", 0),
    "step 0": lambda saved: [e.update(step=torch.tensor(0.0)) for e in saved["state"].values()],
    "step 2**53": lambda saved: [e.update(step=torch.tensor(2.0**53)) for e in saved["state"].values()],
    "step 2**53, an int": lambda saved: [e.update(step=2**53) for e in saved["state"].values()],
    "step a fraction": lambda saved: [e.update(step=torch.tensor(2.5)) for e in saved["state"].values()],
    "indices strings": lambda saved: saved.update(
        state={f"p{k}": v for k, v in saved["state"].items()},
        param_groups=[{**g, "params": [f"p{k}" for k in g["params"]]} for g in saved["param_groups"]],
    ),
    "tuples for lists": lambda saved: saved.update(
        param_groups=tuple({**g, "params": tuple(g["params"])} for g in saved["param_groups"])
    ),
    "OrderedDicts": lambda saved: saved.update(
        state=OrderedDict((k, OrderedDict(v)) for k, v in saved["state"].items()),
        param_groups=[OrderedDict(g) for g in saved["param_groups"]],
    ),
    "maximize None": group("maximize", None),
    "unused state damaged": state("max_exp_avg_sq", None),
}


@pytest.mark.parametrize("change", GOOD.values(), ids=GOOD)
def test_what_torch_trains_with_is_loaded(change: Damage) -> None:
    optimizers = [make(module=torch.optim, foreach=False), make()]
    source = make(module=torch.optim, lr=0.01, steps=3)
    for optimizer in optimizers:
        saved = copy.deepcopy(source.state_dict())
        change(saved)
        optimizer.load_state_dict(saved)
        optimizer.param_groups[0].update(foreach=None if optimizer is optimizers[1] else False)
        for p, q in zip(params_of(optimizer), params_of(source), strict=True):
            p.data.copy_(q)
        for seed in (4, 5):
            set_grads(optimizer, seed)
            optimizer.step()
    theirs, ours = optimizers
    for entry in [*ours.state.values(), *theirs.state.values()]:
        entry.pop("mine", None), entry.pop("max_exp_avg_sq", None)
    assert_optimizers_match(ours, theirs)


def test_a_sparse_momentum_buffer_is_loaded() -> None:
    """SGD keeps it in the layout of sparse gradients."""
    results = []
    for module in (fusedoptim, torch.optim):
        torch.manual_seed(0)
        layer = torch.nn.Embedding(10, 3, sparse=True)
        optimizer = module.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        for step in range(4):
            optimizer.zero_grad()
            layer(torch.tensor([1, 2, step])).square().sum().backward()
            optimizer.step()
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert optimizer.state[layer.weight]["momentum_buffer"].is_sparse
        results.append(layer.weight.detach())
    assert torch.equal(*results)


def test_complex_and_meta_parameters() -> None:
    for module in (fusedoptim, torch.optim):
        z = Parameter(torch.ones(3, dtype=torch.complex64))
        optimizer = module.Adam([z], foreach=False)
        z.grad = torch.ones_like(z) * 1j
        optimizer.step()
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        optimizer.step()
        meta = module.Adam([Parameter(torch.ones(3, device="meta"))])
        saved = module.Adam([Parameter(torch.ones(3))])
        set_grads(saved, 1)
        saved.step()
        meta.load_state_dict(saved.state_dict())
        assert meta.state[params_of(meta)[0]]["exp_avg"].is_meta


def test_tied_parameters_and_views_of_one_another() -> None:
    whole = torch.ones(20)
    params = [Parameter(whole[:10]), Parameter(whole[5:15])]
    optimizer = fusedoptim.Adam(params)
    set_grads(optimizer, 1)
    optimizer.step()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with pytest.warns(UserWarning, match="duplicate"):
        twice = fusedoptim.Adam([params[0], params[0]])
    twice.step()
    twice.load_state_dict(copy.deepcopy(twice.state_dict()))


def test_a_nested_parameter() -> None:
    optimizer = fusedoptim.SGD([Parameter(nested())], lr=0.1, momentum=0.9)
    saved = optimizer.state_dict()
    saved["state"] = {0: {"momentum_buffer": nested()}}
    with pytest.raises(ValueError, match="is a nested tensor"):
        optimizer.load_state_dict(saved)


def test_lazy_parameters() -> None:
    saved = fusedoptim.Adam(torch.nn.Linear(2, 3).parameters())
    set_grads(saved, 1)
    saved.step()
    for module in (fusedoptim, torch.optim):
        optimizer = module.Adam(torch.nn.LazyLinear(3).parameters())
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.load_state_dict(saved.state_dict())
        assert len(optimizer.state) == 2
