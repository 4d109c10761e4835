"""State dicts of other libraries become torch's, and training goes on as theirs would.

The formats are those of apex/optimizers/fused_adam.py (NVIDIA/apex, July 2026), deepspeed/ops/adam/cpu_adam.py
(DeepSpeed 0.19.6), and optimi/adam.py, adamw.py and sgd.py (torch-optimi 0.3.3).
"""

from __future__ import annotations

import copy
from typing import Any

import helpers
import pytest
import torch
from helpers import make_params, set_grads
from torch import Tensor
from torch.nn import Parameter

import fusedoptim

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend", "one_thread")

SIZES = [(4, 33), (7,)]


def moments(seed: int) -> dict[str, Tensor]:
    return {
        "exp_avg": helpers.randn(SIZES[seed], 10 + seed),
        "exp_avg_sq": helpers.randn(SIZES[seed], 20 + seed).square(),
    }


def apex(**group: Any) -> dict[str, Any]:
    return {
        "state": {i: moments(i) for i in range(2)},
        "param_groups": [
            {"lr": 0.01, "bias_correction": True, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1, "step": 5,
             "params": [0, 1], **group}
        ],
    }  # fmt: skip


def deepspeed(**group: Any) -> dict[str, Any]:
    return {
        "state": {i: {"step": 5 + i, **moments(i)} for i in range(2)},
        "param_groups": [
            {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1, "bias_correction": True,
             "amsgrad": False, "params": [0, 1], **group}
        ],
    }  # fmt: skip


OPTIMI = {
    "decouple_wd": False, "decouple_lr": False, "max_lr": None, "kahan_sum": None, "foreach": None, "triton": False,
    "gradient_release": False, "setup": True,
}  # fmt: skip


def optimi_adam(**group: Any) -> dict[str, Any]:
    return {
        "state": {i: {**moments(i), "kahan_comp": None} for i in range(2)},
        "param_groups": [
            {"lr": 0.01, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.1, **OPTIMI,
             "step": torch.tensor(5, dtype=torch.int32), "params": [0, 1], **group}
        ],
    }  # fmt: skip


def optimi_sgd(**group: Any) -> dict[str, Any]:
    return {
        "state": {i: {"exp_avg": moments(i)["exp_avg"], "kahan_comp": None} for i in range(2)},
        "param_groups": [
            {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1, "dampening": False, **OPTIMI, "torch_init": False,
             "params": [0, 1], **group}
        ],
    }  # fmt: skip


def torch_adam(**group: Any) -> dict[str, Any]:
    optimizer = torch.optim.Adam(make_params(SIZES))
    set_grads(optimizer, 1)
    optimizer.step()
    saved = optimizer.state_dict()
    saved["param_groups"][0].update(group)
    return saved


FORMATS = {
    "apex": apex,
    "deepspeed": deepspeed,
    "optimi Adam": optimi_adam,
    "optimi SGD": optimi_sgd,
    "torch": torch_adam,
}
of_formats = pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)


def class_of(make: Any) -> str:
    return "SGD" if make is optimi_sgd else "Adam"


@of_formats
def test_ours_and_torchs_load_it_and_the_input_stays(make: Any) -> None:
    given = make()
    kept = copy.deepcopy(given)
    converted = fusedoptim.convert_state_dict(given)
    assert str(given) == str(kept)
    assert set(converted["param_groups"][0]) >= {"lr", "weight_decay", "params"}
    made = torch.optim.SGD(make_params(SIZES)) if make is optimi_sgd else torch.optim.Adam(make_params(SIZES))
    assert set(converted["param_groups"][0]) - {"decoupled_weight_decay"} == set(made.param_groups[0]) - {
        "decoupled_weight_decay"
    }
    pair = []
    for module in (fusedoptim, torch.optim):
        optimizer = getattr(module, class_of(make))(make_params(SIZES), lr=9.0)
        optimizer.load_state_dict(copy.deepcopy(converted))
        set_grads(optimizer, 3)
        optimizer.step()
        pair.append(optimizer)
    helpers.assert_optimizers_match(*pair)


def test_torchs_own_comes_back_as_it_is() -> None:
    for given in (torch_adam(initial_lr=0.1), torch.optim.SGD(make_params(), momentum=0.9).state_dict()):
        converted = fusedoptim.convert_state_dict(given)
        assert converted == given or str(converted) == str(given)
        assert converted is not given
        assert converted["param_groups"][0] is not given["param_groups"][0]
        for index, entry in given["state"].items():
            assert all(converted["state"][index][key] is value for key, value in entry.items())


@pytest.mark.parametrize("step", [5, torch.tensor([5], dtype=torch.int32)])
def test_apex_counts_steps_in_the_group(step: Any) -> None:
    converted = fusedoptim.convert_state_dict(apex(step=step, lr=torch.tensor(0.5)))
    lr = converted["param_groups"][0]["lr"]
    assert (lr, type(lr)) == (0.5, float)
    steps = [entry["step"] for entry in converted["state"].values()]
    assert [(float(x), x.dtype, x.shape) for x in steps] == [(5, torch.float32, ())] * 2
    assert steps[0] is not steps[1]
    assert "step" not in converted["param_groups"][0]


def test_deepspeed_counts_them_for_each_parameter() -> None:
    converted = fusedoptim.convert_state_dict(deepspeed())
    assert [float(entry["step"]) for entry in converted["state"].values()] == [5, 6]


def test_optimis_moments_are_divided_by_their_bias() -> None:
    given = optimi_adam(decouple_wd=True)
    converted = fusedoptim.convert_state_dict(given)
    assert converted["param_groups"][0]["betas"] == (0.8, 0.95)
    assert converted["param_groups"][0]["decoupled_weight_decay"] is True
    for name, beta in (("exp_avg", 0.8), ("exp_avg_sq", 0.95)):
        for index, entry in given["state"].items():
            exact = entry[name].double() * (1 - beta**5)
            got = converted["state"][index][name].double()
            torch.testing.assert_close(got, exact, rtol=2**-24, atol=0)  # one rounding


def test_a_moment_of_optimi_with_a_beta_of_0_has_no_bias() -> None:
    given = optimi_adam(beta1=0.0)
    entry = fusedoptim.convert_state_dict(given)["state"][1]
    assert torch.equal(entry["exp_avg"], given["state"][1]["exp_avg"])
    assert not torch.equal(entry["exp_avg_sq"], given["state"][1]["exp_avg_sq"])


def test_optimis_dampening_is_its_momentum() -> None:
    assert fusedoptim.convert_state_dict(optimi_sgd(dampening=True))["param_groups"][0]["dampening"] == 0.9
    plain = fusedoptim.convert_state_dict(optimi_sgd(momentum=0, dampening=True))
    assert plain["param_groups"][0]["dampening"] == 0
    assert plain["state"] == {0: {}, 1: {}}


def test_a_parameter_without_state_has_none_after() -> None:
    for make in (apex, deepspeed, optimi_adam, optimi_sgd):
        given = make()
        del given["state"][1]
        assert set(fusedoptim.convert_state_dict(given)["state"]) == {0}
    fresh = apex()
    fresh["state"].clear()
    del fresh["param_groups"][0]["step"]
    assert fusedoptim.convert_state_dict(fresh)["state"] == {}


@pytest.mark.parametrize("of_group", [None, 9])
def test_optimi_with_gradient_release(of_group: int | None) -> None:
    """Each parameter counts its own steps, whatever count the group had."""
    given = optimi_adam(gradient_release=True, step=of_group)
    if of_group is None:
        del given["param_groups"][0]["step"]
    for index, entry in given["state"].items():
        entry.update(step=torch.tensor(3 + index, dtype=torch.int32), group=given["param_groups"][0])
    converted = fusedoptim.convert_state_dict(given)
    assert [float(entry["step"]) for entry in converted["state"].values()] == [3, 4]
    assert set(converted["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}


def test_optimi_with_triton_marks_no_sum_by_a_byte() -> None:
    given = optimi_adam(triton=True)
    for entry in given["state"].values():
        entry["kahan_comp"] = torch.zeros(1, dtype=torch.uint8)
    assert set(fusedoptim.convert_state_dict(given)["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}


def test_entries_of_schedulers_and_of_ones_own() -> None:
    for make in FORMATS.values():
        given = make(initial_lr=0.5, mine="head")
        with pytest.raises(
            ValueError, match=r"param_groups\[0\] has keys that are not understood: \['mine'\]; .*keep="
        ):
            fusedoptim.convert_state_dict(given)
        group = fusedoptim.convert_state_dict(given, keep=["mine"])["param_groups"][0]
        assert (group["mine"], group["initial_lr"]) == ("head", 0.5)


def _with_state(given: dict[str, Any], **entry: Any) -> dict[str, Any]:
    given["state"][1].update(entry)
    return given


BAD = {
    "bias_correction": (lambda: apex(bias_correction=False), r"\[0\]\['bias_correction'\] is False"),
    "bias_correction 0": (lambda: deepspeed(bias_correction=0), "bias_correction"),
    "amsgrad of DeepSpeed": (lambda: deepspeed(amsgrad=True), "amsgrad.*ignores"),
    "two counts": (lambda: deepspeed(step=0), "not both"),
    "no count": (lambda: apex(step=None), r"state\[0\] must have a 'step'"),
    "step a string": (lambda: _with_state(deepspeed(), step="x"), r"state\[1\]\['step'\] must be a count"),
    "decouple_lr": (lambda: optimi_adam(decouple_lr=True), "decouple_lr"),
    "decouple_lr of SGD": (lambda: optimi_sgd(decouple_lr=True), "decouple_lr"),
    "decouple_wd of SGD": (lambda: optimi_sgd(decouple_wd=True), "decouple_wd.*for SGD"),
    "StableAdamW": (lambda: _with_state(optimi_adam(), eps_sq=torch.ones(())), r"state\[1\].*'eps_sq'"),
    "Ranger": (lambda: optimi_adam(k=6, alpha=0.5), r"\['k', 'alpha'\]"),
    "unknown state": (lambda: _with_state(torch_adam(), slow=torch.ones(7)), r"state\[1\].*'slow'"),
    "unknown": (lambda: {"state": {}, "param_groups": [{"lr": 1, "params": []}]}, "no optimizer known"),
    "unknown index": (lambda: {**apex(), "state": {7: {}}}, "state has entries that belong to no parameter.*: 7"),
    "no state dict": (lambda: {"model": {}}, "must have 'state' and 'param_groups'"),
    "entry a list": (lambda: {**apex(), "state": {1: [1]}}, r"state\[1\] must be a dict"),
    "no moment": (lambda: {**optimi_sgd(), "state": {1: {"kahan_comp": None}}}, "no 'exp_avg'"),
}


@pytest.mark.parametrize(("make", "words"), BAD.values(), ids=BAD)
def test_what_is_not_understood_is_named(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fusedoptim.convert_state_dict(make())


def test_no_weight_decay_cannot_be_decoupled() -> None:
    fusedoptim.convert_state_dict(optimi_adam(decouple_lr=True, weight_decay=0))
    fusedoptim.convert_state_dict(optimi_sgd(decouple_wd=True, weight_decay=0))


def test_optimis_first_dampened_gradient_is_refused() -> None:
    given = optimi_sgd(dampening=True)
    del given["state"][1]
    with pytest.raises(ValueError, match="parameter 1 has no state yet"):
        fusedoptim.convert_state_dict(given)
    given["param_groups"][0]["torch_init"] = True
    fusedoptim.convert_state_dict(given)


@pytest.mark.parametrize(
    ("theirs", "options", "ours"),
    [
        ("Adam", {"weight_decay": 0.1}, "Adam"),
        ("Adam", {"weight_decay": 0.1, "decouple_wd": True, "betas": (0.0, 0.99)}, "Adam"),
        ("AdamW", {"eps": 1e-8}, "AdamW"),
        ("SGD", {}, "SGD"),
        ("SGD", {"momentum": 0.9, "weight_decay": 0.1}, "SGD"),
        ("SGD", {"momentum": 0.9, "dampening": True}, "SGD"),
        ("SGD", {"momentum": 0.9, "dampening": True, "torch_init": True}, "SGD"),
    ],
    ids=str,
)
def test_training_goes_on_as_optimis(theirs: str, options: dict[str, Any], ours: str) -> None:
    """To a few roundings of values of order 1 in each of ten steps."""
    optimi = pytest.importorskip("optimi")
    params = make_params(SIZES)
    first = getattr(optimi, theirs)(params, lr=0.01, triton=False, **options)
    for seed in range(10):
        set_grads(first, seed)
        first.step()
    copies = [Parameter(p.detach().clone()) for p in params]
    second = getattr(fusedoptim, ours)(copies, lr=9.0)
    second.load_state_dict(fusedoptim.convert_state_dict(copy.deepcopy(first.state_dict())))
    for seed in range(10, 20):
        for optimizer in (first, second):
            set_grads(optimizer, seed)
            optimizer.step()
    for p, q in zip(params, copies, strict=True):
        torch.testing.assert_close(q, p, rtol=0, atol=1e-6)
