"""What other libraries keep beside parameters of 16 bits goes over with its setting, and training goes on as theirs.

TransformerEngine's format is that of 2.20.2 (transformer_engine/pytorch/optimizers/fused_adam.py), and its step that of
2.3.0 (multi_tensor_adam.cu of transformer_engine_torch), the last release with the kernel in its sources; optimi's of
torch-optimi 0.3.3.
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

SHAPES = [(64, 128), (7,)]


def fused_adam(dtype: torch.dtype = torch.int16, **group: Any) -> dict[str, Any]:
    def entry(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
        first, second = helpers.randn(shape, seed), helpers.randn(shape, seed + 1).square()
        return {"exp_avg": first, "exp_avg_sq": second, "master_param": torch.ones(shape, dtype=dtype)}

    return {
        "state": {0: entry(10, SHAPES[0], dtype), 1: entry(20, (7,), torch.float32)},  # parameter 1 is in float32
        "param_groups": [
            {"lr": 0.01, "bias_correction": True, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1, "step": 5,
             "params": [0, 1], **group}
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "setting"), [(torch.int16, "remainder"), (torch.float32, True)], ids=["remainder", "master"]
)
def test_masters_go_over_with_their_setting(dtype: torch.dtype, setting: Any) -> None:
    given = fused_adam(dtype)
    converted = fusedoptim.convert_state_dict(given)
    assert converted["param_groups"][0]["master_weights"] == setting
    assert converted["state"][0]["master_param"] is given["state"][0]["master_param"]
    params = [Parameter(helpers.randn(SHAPES[0], 1).bfloat16()), Parameter(helpers.randn((7,), 2))]
    optimizer = fusedoptim.AdamW(params)
    optimizer.load_state_dict(converted)
    set_grads(optimizer, 1)
    optimizer.step()
    plain = fusedoptim.AdamW(
        [Parameter(helpers.randn((7,), 2))], lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1
    )
    plain.state[plain.param_groups[0]["params"][0]].update(
        step=torch.tensor(5.0), exp_avg=helpers.randn((7,), 20), exp_avg_sq=helpers.randn((7,), 21).square()
    )
    plain.param_groups[0]["params"][0].grad = params[1].grad
    plain.step()
    assert torch.equal(params[1], plain.param_groups[0]["params"][0])  # float32 needs no master, whatever it holds


def no_masters(given: dict[str, Any]) -> dict[str, Any]:
    for entry in given["state"].values():
        del entry["master_param"]
    return given


def test_a_master_in_another_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match=r"state\[0\]\['master_param'\] must be .*float32 or int16"):
        fusedoptim.convert_state_dict(fused_adam(torch.float16))


def test_without_masters_there_is_no_setting() -> None:
    assert "master_weights" not in fusedoptim.convert_state_dict(no_masters(fused_adam()))["param_groups"][0]


def fused_adam_step(params: list[Tensor], saved: dict[str, Any], seed: int) -> list[Tensor]:
    """A step of TransformerEngine, of bfloat16 parameters; returns the masters."""
    group = saved["param_groups"][0]
    group["step"] += 1
    (beta1, beta2), step, masters = group["betas"], group["step"], []
    for index, p in enumerate(params):
        entry = saved["state"][index]
        m, v, kept = entry["exp_avg"], entry["exp_avg_sq"], entry["master_param"]
        is_split = kept.dtype == torch.int16
        upper = p.detach().view(torch.int16).int()
        upper = upper - (kept < 0).int()  # "Undo rounding"
        x = (upper * 65536 + (kept.int() & 0xFFFF)).view(torch.float32) if is_split else kept
        g = helpers.randn(p.shape, 1000 * seed + index, torch.bfloat16).float()
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).add_(g * g, alpha=1 - beta2)
        update = (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + group["eps"]) + group["weight_decay"] * x
        x = x - group["lr"] * update
        bits = x.view(torch.int32)
        if is_split:
            kept.copy_(bits.to(torch.int16))
            p.data.view(torch.int16).copy_((bits >> 16) + (kept < 0).int())  # "Round up"
        else:
            kept.copy_(x)
            p.data.copy_(x)
        masters.append(x)
    return masters


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32], ids=["remainder", "master"])
def test_masters_go_on_as_transformer_engines(dtype: torch.dtype) -> None:
    """To a few roundings of float32, of which a bfloat16 parameter holds one in 65,536."""
    params = make_params(SHAPES, torch.bfloat16)
    saved = no_masters(fused_adam(step=0))
    for index, p in enumerate(params):
        kept = torch.zeros(p.shape, dtype=dtype) if dtype == torch.int16 else p.detach().float()
        saved["state"][index] = {
            "exp_avg": torch.zeros(p.shape),
            "exp_avg_sq": torch.zeros(p.shape),
            "master_param": kept,
        }
    for seed in range(5):
        fused_adam_step(params, saved, seed)
    copies = [Parameter(p.detach().clone()) for p in params]
    optimizer = fusedoptim.AdamW(copies)
    optimizer.load_state_dict(fusedoptim.convert_state_dict(copy.deepcopy(saved)))
    set_grads(optimizer, 5)
    optimizer.step()
    for p, theirs in zip(copies, fused_adam_step(params, saved, 5), strict=True):
        kept = optimizer.state[p]["master_param"]
        ours = (p.detach().view(torch.int16).int() * 65536 + kept.int()).view(torch.float32)
        torch.testing.assert_close(ours if dtype == torch.int16 else kept, theirs, rtol=0, atol=1e-6)


def optimi(name: str, **group: Any) -> dict[str, Any]:
    """Of a parameter in bfloat16 and one in float32, for which Triton's state is a byte."""
    is_sgd = name == "SGD"
    moments = ["exp_avg"] if is_sgd else ["exp_avg", "exp_avg_sq"]
    comps = [(0.001 * helpers.randn(SHAPES[0], 3)).bfloat16(), torch.zeros(1, dtype=torch.uint8)]
    entries = [
        {**{key: torch.ones(shape, dtype=dtype) for key in moments}, "kahan_comp": comp}
        for shape, dtype, comp in zip(SHAPES, (torch.bfloat16, torch.float32), comps, strict=True)
    ]
    own = {"momentum": 0.9, "dampening": False, "torch_init": False}
    adam = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "step": torch.tensor(5, dtype=torch.int32)}
    common = {
        "lr": 0.01, "weight_decay": 0.0, "decouple_wd": False, "decouple_lr": False, "max_lr": None, "kahan_sum": True,
        "foreach": None, "triton": True, "gradient_release": False, "setup": True,
    }  # fmt: skip
    return {
        "state": dict(enumerate(entries)),
        "param_groups": [{**(own if is_sgd else adam), **common, "params": [0, 1], **group}],
    }


@pytest.mark.parametrize(("name", "group"), [("Adam", {}), ("SGD", {}), ("SGD", {"momentum": 0})], ids=str)
def test_optimis_kahan_sum_goes_over(name: str, group: dict[str, Any]) -> None:
    given = optimi(name, **group)
    converted = fusedoptim.convert_state_dict(given)
    assert converted["param_groups"][0]["kahan_sum"] is True
    assert converted["state"][0]["kahan_comp"] is given["state"][0]["kahan_comp"]
    assert "kahan_comp" not in converted["state"][1]
    params = [Parameter(torch.ones(SHAPES[0], dtype=torch.bfloat16)), Parameter(torch.ones(SHAPES[1]))]
    optimizer = getattr(fusedoptim, name)(params)
    optimizer.load_state_dict(converted)
    kept = optimizer.state[params[0]]["kahan_comp"].float()
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    after = params[0].float() + optimizer.state[params[0]]["kahan_comp"].float()
    assert torch.equal(after, 1 + kept)


def test_a_kahan_sum_that_optimi_does_not_make_is_refused() -> None:
    for dtype, group in ((torch.float32, {}), (torch.bfloat16, {"kahan_sum": None})):
        given = optimi("Adam", **group)
        given["state"][0]["kahan_comp"] = torch.ones(SHAPES[0], dtype=dtype)
        with pytest.raises(ValueError, match=r"state\[0\]\['kahan_comp'\] must be .*kahan_sum=True"):
            fusedoptim.convert_state_dict(given)


def test_moments_of_optimi_in_bfloat16_are_not_rounded_again() -> None:
    entry = fusedoptim.convert_state_dict(optimi("Adam"))["state"][0]
    assert entry["exp_avg"].dtype == torch.float32
    torch.testing.assert_close(
        entry["exp_avg"].double(), torch.full(SHAPES[0], 1 - 0.8**5).double(), rtol=2**-24, atol=0
    )


@pytest.mark.parametrize(
    ("name", "options"), [("AdamW", {}), ("Adam", {"weight_decay": 0.1}), ("SGD", {"momentum": 0.9})], ids=str
)
def test_kahan_sums_go_on_as_optimis(name: str, options: dict[str, Any]) -> None:
    """To less than bfloat16 rounds a step to, and far less than a parameter to."""
    theirs = pytest.importorskip("optimi")
    params = make_params(SHAPES, torch.bfloat16)
    first = getattr(theirs, name)(params, lr=0.01, triton=False, **options)
    for seed in range(5):
        set_grads(first, seed)
        first.step()
    copies = [Parameter(p.detach().clone()) for p in params]
    second = getattr(fusedoptim, name)(copies)
    second.load_state_dict(fusedoptim.convert_state_dict(copy.deepcopy(first.state_dict())))
    for optimizer in (first, second):
        set_grads(optimizer, 5)
        optimizer.step()
    for p, q in zip(params, copies, strict=True):
        one, two = (x.detach().float() + o.state[x]["kahan_comp"].float() for x, o in ((p, first), (q, second)))
        torch.testing.assert_close(two, one, rtol=0, atol=5e-4)
