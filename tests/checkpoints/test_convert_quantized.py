"""State of other libraries in 8 bits becomes float32.

The formats are those of bitsandbytes 0.50.2, torchao 0.18.0 and flashoptim 0.1.4; test_convert_packages.py asks them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from helpers import make_params, set_grads
from torch import Tensor

import fusedoptim

backend = helpers.backend
pytestmark = pytest.mark.usefixtures("backend", "one_thread")

SHAPE = (6, 50)  # two blocks of bitsandbytes, ten groups of flashoptim, the last of each not full


def bitsandbytes(*, wrapped: bool = True, **group: Any) -> dict[str, Any]:
    codes = torch.arange(300).reshape(SHAPE) % 256
    inner = {
        "state1": codes.to(torch.uint8), "qmap1": torch.linspace(-1, 1, 256), "absmax1": torch.tensor([3.0, 5.0]),
        "state2": (255 - codes).to(torch.uint8), "qmap2": torch.linspace(0, 1, 256),
        "absmax2": torch.tensor([0.5, 7.0]),
    }  # fmt: skip
    small = {"state1": helpers.randn((7,), 1), "state2": helpers.randn((7,), 2).square()}
    entries = [{"step": 5, "__bnb_optimizer_quant_state__": x} if wrapped else {"step": 5, **x} for x in (inner, small)]
    return {
        "state": dict(enumerate(entries)),
        "param_groups": [
            {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1, "alpha": 0.0, "t_alpha": None,
             "t_beta3": None, "params": [0, 1], **group}
        ],
    }  # fmt: skip


class OptimState8bit:
    """As torchao's, to those who only ask it for its numbers."""

    __module__ = "torchao.optim.subclass_8bit"

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers

    def dequantize(self) -> Tensor:
        return self.numbers


def torchao(**group: Any) -> dict[str, Any]:
    first, second = helpers.randn(SHAPE, 1), helpers.randn(SHAPE, 2).square()
    return {
        "state": {
            0: {"step": torch.tensor(5.0), "exp_avg": OptimState8bit(first), "exp_avg_sq": OptimState8bit(second)},
            1: {"step": torch.tensor(4.0), "exp_avg": torch.ones(7), "exp_avg_sq": torch.ones(7)},
        },
        "param_groups": [
            {"lr": torch.tensor(0.5), "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1, "amsgrad": False,
             "params": [0, 1], **group}
        ],
    }  # fmt: skip


def flashoptim(**group: Any) -> dict[str, Any]:
    codes = torch.arange(300).reshape(SHAPE) % 255
    scale = torch.linspace(0.5, 2, 10).half()
    return {
        "state": {
            0: {"step": torch.tensor(5), "exp_avg::quantized": (codes - 127).to(torch.int8), "exp_avg::scales": scale,
                "exp_avg_sq::quantized": codes.to(torch.uint8),
                "exp_avg_sq::scales": scale.flip(0).view(torch.bfloat16)},
            1: {"step": torch.tensor(4), "exp_avg": torch.ones(7), "exp_avg_sq": torch.ones(7)},
        },
        "param_groups": [
            {"lr": 0.01, "initial_lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1,
             "master_bytewidth": 3, "quantize": True, "params": [0, 1], **group}
        ],
    }  # fmt: skip


@pytest.mark.parametrize("make", [bitsandbytes, torchao, flashoptim], ids=lambda make: make.__name__)
def test_ours_and_torchs_load_it_and_the_input_stays(make: Callable[[], dict[str, Any]]) -> None:
    given = make()
    kept = copy.deepcopy(given)
    converted = fusedoptim.convert_state_dict(given)
    assert [list(entry) for entry in given["state"].values()] == [list(entry) for entry in kept["state"].values()]
    assert str(given["param_groups"]) == str(kept["param_groups"])
    made = set(torch.optim.Adam(make_params()).param_groups[0])
    assert set(converted["param_groups"][0]) - {"initial_lr"} | {"decoupled_weight_decay"} == made
    pair = []
    for module in (fusedoptim, torch.optim):
        optimizer = module.Adam(make_params([SHAPE, (7,)]), lr=9.0)
        optimizer.load_state_dict(copy.deepcopy(converted))
        set_grads(optimizer, 3)
        optimizer.step()
        pair.append(optimizer)
    helpers.assert_optimizers_match(*pair)


@pytest.mark.parametrize("wrapped", [True, False])
def test_bitsandbytes_scales_blocks_of_the_flattened_tensor(wrapped: bool) -> None:
    converted = fusedoptim.convert_state_dict(bitsandbytes(wrapped=wrapped))
    first, second = (converted["state"][0][name].flatten().tolist() for name in ("exp_avg", "exp_avg_sq"))
    signed, unsigned = torch.linspace(-1, 1, 256), torch.linspace(0, 1, 256)
    assert first == [float(signed[i % 256] * (3.0, 5.0)[i // 256]) for i in range(300)]
    assert second == [float(unsigned[255 - i % 256] * (0.5, 7.0)[i // 256]) for i in range(300)]
    assert converted["state"][0]["exp_avg"].shape == SHAPE
    assert torch.equal(converted["state"][1]["exp_avg"], helpers.randn((7,), 1))
    assert float(converted["state"][0]["step"]) == 5
    assert converted["param_groups"][0]["decoupled_weight_decay"] is True


def test_bitsandbytes_is_known_by_its_group_or_its_state() -> None:
    fresh = bitsandbytes()
    fresh["state"].clear()
    older = bitsandbytes(wrapped=False)  # than AdEMAMix, without whose keys it has torch's
    for key in ("alpha", "t_alpha", "t_beta3"):
        del older["param_groups"][0][key]
    for given in (fresh, older):
        assert fusedoptim.convert_state_dict(given)["param_groups"][0]["decoupled_weight_decay"] is True


def test_torchaos_moments_are_what_they_say() -> None:
    given = torchao(amsgrad=True)
    given["state"][0]["max_exp_avg_sq"] = OptimState8bit(torch.ones(SHAPE))
    converted = fusedoptim.convert_state_dict(given)
    entry, group = converted["state"][0], converted["param_groups"][0]
    assert all(entry[name] is given["state"][0][name].numbers for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))
    assert (group["lr"], type(group["lr"]), group["amsgrad"]) == (0.5, float, True)


def test_torchao_is_known_without_state_in_8_bits() -> None:
    given = torchao()
    del given["state"][0]
    assert type(fusedoptim.convert_state_dict(given)["param_groups"][0]["lr"]) is float
    given = torchao(lr=0.5)
    assert isinstance(fusedoptim.convert_state_dict(given)["state"][0]["exp_avg"], Tensor)


def test_flashoptims_moments_are_a_softsign_and_a_root() -> None:
    """Also where the scales, in fp16, are in a tensor of bfloat16."""
    entry = fusedoptim.convert_state_dict(flashoptim())["state"][0]
    scale = torch.linspace(0.5, 2, 10).half().double()
    for i in range(300):
        first, second = (float(entry[name].flatten()[i]) for name in ("exp_avg", "exp_avg_sq"))
        transformed = 2 * first / (float(scale[i // 32]) + abs(first))  # 2x / (1 + |x|)
        assert transformed * 127 == pytest.approx(i % 255 - 127, abs=1e-4)
        assert second**0.5 / float(scale[9 - i // 32]) * 255 == pytest.approx(i % 255, abs=1e-4)


def changed(given: dict[str, Any], **entry: Any) -> dict[str, Any]:
    """With other entries in the first parameter's state, and without those that are None."""
    state = given["state"][0]
    state = state.get("__bnb_optimizer_quant_state__", state)
    state.update(entry)
    for key in [key for key, value in entry.items() if value is None]:
        del state[key]
    return given


class Sharded(Tensor):
    pass


BAD: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "one state": (lambda: changed(bitsandbytes(), state2=None), r"state\[0\] has no 'state2'.*SGD, Lion"),
    "LAMB": (lambda: changed(bitsandbytes(), unorm_vec=torch.ones(1)), r"state\[0\].*'unorm_vec'"),
    "AdEMAMix": (lambda: bitsandbytes(betas=(0.9, 0.99, 0.999)), r"param_groups\[0\] is of AdEMAMix"),
    "AdEMAMix's alpha": (lambda: bitsandbytes(alpha=5.0), "AdEMAMix"),
    "blocks of 2048": (lambda: changed(bitsandbytes(), absmax1=torch.ones(1)), r"\['absmax1'\] must .* 2 elem.* of 1"),
    "no map": (lambda: changed(bitsandbytes(), qmap2=None), r"state\[0\]\['qmap2'\] must be .*got None"),
    "channels last": (
        lambda: changed(bitsandbytes(), state1=torch.zeros(SHAPE[::-1], dtype=torch.uint8).T),
        r"\['state1'\] must be contiguous",
    ),
    "wrapped a list": (
        lambda: {**bitsandbytes(), "state": {0: {"__bnb_optimizer_quant_state__": []}}}, "must be a dict"
    ),
    "no step": (lambda: {**bitsandbytes(), "state": {0: {"state1": 1, "state2": 1}}}, r"\['step'\] must be a count"),
    "sharded": (
        lambda: changed(torchao(), exp_avg=torch.zeros(SHAPE).as_subclass(Sharded)), r"\['exp_avg'\].* got a Sharded"
    ),
    "of torchao and more": (lambda: changed(torchao(), other=1), r"state\[0\].*'other'"),
    "error bits": (lambda: changed(flashoptim(), error_bits=torch.zeros(1)), r"state\[0\] has 'error_bits'.*remove"),
    "no scales": (lambda: changed(flashoptim(), **{"exp_avg::scales": None}), r"\['exp_avg::scales'\] must be"),
    "signed second": (
        lambda: changed(flashoptim(), **{"exp_avg_sq::quantized": torch.zeros(SHAPE, dtype=torch.int8)}),
        r"\['exp_avg_sq::quantized'\] must be torch.uint8",
    ),
    "FlashSGD": (
        lambda: {"state": {}, "param_groups": [{"lr": 1, "momentum": 0.9, "master_bytewidth": 3, "params": []}]},
        r"param_groups\[0\] has no 'eps'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "words"), BAD.values(), ids=BAD)
def test_what_is_not_understood_is_named(make: Callable[[], dict[str, Any]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fusedoptim.convert_state_dict(make())
