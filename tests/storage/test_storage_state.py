"""Storage of any kind in checkpoints, copies and reports, and what is refused."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from storages import BF16, F16, F32, Storage, assert_same, of_settings, state_of

import fusedoptim


def trained(storage: Storage, steps: int = 3, **options: Any) -> tuple[list[Any], Any]:
    params = storage.params()
    optimizer = storage.make(params, **options)
    go_on(storage, params, optimizer, range(steps))
    return params, optimizer


def go_on(storage: Storage, params: list[Any], optimizer: Any, seeds: Any) -> None:
    for seed in seeds:
        storage.set_grads(params, seed)
        optimizer.step()


@of_settings
@pytest.mark.parametrize("rule", ["AdamW", "SGD"])
@pytest.mark.parametrize("settings", ["the same settings", "none"])
def test_training_goes_on_from_a_file_with_the_same_bits(storage: Storage, rule: str, settings: str) -> None:
    """Settings are in the file, so an optimizer that was made without them has them as well."""
    storage = Storage(rule, storage.param, storage.grad, storage.settings)
    params, optimizer = trained(storage)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "params": params}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    others = [torch.nn.Parameter(x.detach()) for x in loaded["params"]]
    maker = storage if settings == "the same settings" else Storage(rule, storage.param, storage.grad)
    other = maker.make(others)
    other.load_state_dict(loaded["optimizer"])
    assert_same(state_of(other), state_of(optimizer))
    go_on(storage, params, optimizer, range(3, 6))
    go_on(storage, others, other, range(3, 6))
    assert_same(state_of(other), state_of(optimizer))


@of_settings
def test_copies_and_pickles(storage: Storage) -> None:
    params, optimizer = trained(storage)
    copies = [copy.deepcopy((params, optimizer)), pickle.loads(pickle.dumps((params, optimizer)))]
    go_on(storage, params, optimizer, range(3, 5))
    for others, other in copies:
        go_on(storage, others, other, range(3, 5))
        assert_same(state_of(other), state_of(optimizer))


@of_settings
def test_state_of_torch_is_converted_to_the_storage_asked_for(storage: Storage) -> None:
    wide = Storage("AdamW", storage.param, storage.grad)
    params = wide.params()
    plain = torch.optim.AdamW(params, lr=1e-2)
    go_on(wide, params, plain, range(3))
    others = wide.params()
    ours = storage.make(others)
    ours.load_state_dict(plain.state_dict())
    go_on(storage, others, ours, range(3, 5))
    asked = storage.make(storage.params())
    go_on(storage, asked.param_groups[0]["params"], asked, range(1))
    for one, other in zip(state_of(ours), state_of(asked), strict=True):
        assert {name: x.dtype for name, x in one.items()} == {name: x.dtype for name, x in other.items()}


@of_settings
def test_and_back(storage: Storage) -> None:
    """``convert_state_dict`` gives what torch's class loads: the numbers that the storage stands for."""
    params, optimizer = trained(storage)
    converted = fusedoptim.convert_state_dict(optimizer.state_dict())
    wide = [torch.nn.Parameter(param.detach().float()) for param in params]
    plain = torch.optim.AdamW(wide, lr=1e-2)
    plain.load_state_dict(converted)
    for param, other in zip(params, wide, strict=True):
        state, theirs = optimizer.state[param], plain.state[other]
        assert theirs.keys() - {"ema"} == {"step", "exp_avg", "exp_avg_sq"}
        for name in ("exp_avg", "exp_avg_sq"):
            assert theirs[name].dtype == F32
            if state[name].dtype != torch.uint8:
                assert torch.equal(theirs[name], state[name].float())
                continue
            scale = state[f"{name}_scale"].repeat_interleave(256, -1)
            rows = theirs[name].reshape(scale.shape[0], -1) if param.ndim > 1 else theirs[name]
            assert (rows.abs() <= 1.875 * scale[..., : rows.shape[-1]]).all()
    for param in wide:
        param.grad = torch.ones_like(param)
    plain.step()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["exp_avg_scale"].mul_(3), "exp_avg_scale.*powers of two"),
        (lambda s: s["exp_avg_scale"].neg_(), "exp_avg_scale.*powers of two"),
        (lambda s: s.update(exp_avg_scale=s["exp_avg_scale"][:-1].clone()), r"exp_avg_scale.*of shape \(70, 1\)"),
        (lambda s: s.update(exp_avg_scale=s["exp_avg_scale"].double()), "exp_avg_scale.*float32"),
        (lambda s: s.update(exp_avg=s["exp_avg"][:-1].clone()), "exp_avg.*shape"),
        (lambda s: s.pop("exp_avg_scale"), "exp_avg.*uint8, which is not a floating"),
        (lambda s: s.update(master_param=s["master_param"].double()), "master_param.*dtype"),
        (lambda s: s.update(master_param=s["master_param"][:-1].clone()), "master_param.*shape"),
    ],
)  # fmt: skip
def test_damaged_state_is_refused_whole(change: Any, message: str) -> None:
    storage = Storage("AdamW", BF16, BF16, {"master_weights": True, "state_dtype": "8bit"})
    params, optimizer = trained(storage)
    saved = copy.deepcopy(optimizer.state_dict())
    go_on(storage, params, optimizer, range(3, 4))
    before = state_of(optimizer)
    change(saved["state"][0])
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert_same(state_of(optimizer), before)


@pytest.mark.parametrize(
    ("settings", "dtype", "message"),
    [
        ({"state_dtype": torch.float64}, F32, "state_dtype must be None, torch.float32.*got torch.float64"),
        ({"state_dtype": "4bit"}, F32, "state_dtype must be.*got '4bit'"),
        ({"state_dtype": {"exp_avg": "8bit", "moment": BF16}}, F32, "state_dtype must name states of .*'moment'"),
        ({"state_dtype": BF16}, torch.float64, "state_dtype must be None for float64.*parameter 0 of group 0"),
        ({"master_weights": "half"}, BF16, "master_weights must be True, False or \"remainder\", got 'half'"),
        ({"master_weights": "remainder"}, F16, "is for bfloat16 parameters only.*parameter 0 of group 0"),
        ({"master_weights": True, "kahan_sum": True}, BF16, "master_weights and kahan_sum exclude each other"),
        ({"kahan_sum": True, "stochastic_rounding": True}, BF16, "kahan_sum and stochastic_rounding exclude"),
        ({"kahan_sum": 1}, BF16, "kahan_sum must be True or False, got 1"),
        ({"stochastic_rounding": True, "seed": -1}, BF16, "seed must be an integer from 0"),
        ({"state_dtype": BF16, "foreach": True}, F32, "state_dtype needs this package's own step.*foreach=True"),
    ],
)  # fmt: skip
def test_a_storage_that_cannot_be_is_an_error_of_the_constructor(
    settings: dict[str, Any], dtype: torch.dtype, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fusedoptim.AdamW([torch.nn.Parameter(torch.ones(3, dtype=dtype))], **settings)


def test_torch_does_not_take_what_only_we_can_store() -> None:
    param = torch.nn.Parameter(torch.ones(3, dtype=BF16))
    optimizer = fusedoptim.SGD([param], lr=0.1, master_weights=True)
    param.grad = torch.ones(3, dtype=BF16).to_sparse()
    with pytest.raises(RuntimeError, match=r"master_weights=True of parameter group 0.*explain_step"):
        optimizer.step()
    assert param.eq(1).all()


@of_settings
@pytest.mark.parametrize("rule", ["AdamW", "SGD"])
def test_memory_is_told_before_the_first_step(storage: Storage, rule: str) -> None:
    storage = Storage(rule, storage.param, storage.grad, storage.settings)
    params = storage.params()
    optimizer = storage.make(params)
    storage.set_grads(params, 0)
    before = fusedoptim.memory(optimizer)
    optimizer.step()
    after = fusedoptim.memory(optimizer)
    assert before == after
    tensors = [*params, *(p.grad for p in params), *(x for p in params for x in optimizer.state[p].values())]
    assert after.total == sum(x.nbytes for x in tensors)
    assert str(after).splitlines()[-1].split()[0] == "total"


def test_settings_leave_plain_state_dicts_as_torch_has_them() -> None:
    ours, theirs = (m.AdamW([torch.nn.Parameter(torch.ones(3))]) for m in (fusedoptim, torch.optim))
    assert ours.state_dict() == theirs.state_dict()
