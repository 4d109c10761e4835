"""``max_grad_norm`` and ``skip_nonfinite``: in the constructor, in groups, in files, and what they do to a step."""

from __future__ import annotations

import inspect
import io
import math
import pickle
from typing import Any

import helpers
import pytest
import torch
from helpers import everything_of, make_params, of_names, of_settings, params_of, set_grads
from torch.nn import Parameter

import fusedoptim

path = helpers.path
pytestmark = pytest.mark.usefixtures("path")

SETTINGS = {"max_grad_norm": 0.5, "skip_nonfinite": True}
BAD: list[tuple[str, Any]] = [
    *(("max_grad_norm", value) for value in (-1.0, math.nan, "1.0", [1.0], torch.ones(2), -torch.ones(1))),
    *(("skip_nonfinite", value) for value in ("no", 1, None)),
]
of_bad = pytest.mark.parametrize(("setting", "value"), BAD, ids=str)


# ---- steps that are left out ----------------------------------------------------------------------------------------


@of_settings
@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("limit", [None, 0.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_nothing_changes(name: str, options: dict[str, Any], value: float, limit: Any, dtype: torch.dtype) -> None:
    optimizer = getattr(fusedoptim, name)(make_params(dtype=dtype), **options, max_grad_norm=limit, skip_nonfinite=True)
    for seed in range(2):  # before there is any state, and after
        set_grads(optimizer, seed)
        params_of(optimizer)[0].grad[2, 5] = value
        before = everything_of(optimizer), [p.detach().clone() for p in params_of(optimizer)]
        optimizer.step()
        assert everything_of(optimizer) == before[0]
        assert all(map(torch.equal, params_of(optimizer), before[1]))
        assert optimizer.skipped_steps == seed + 1
        set_grads(optimizer, seed)
        optimizer.step()
        assert not all(map(torch.equal, params_of(optimizer), before[1]))
    assert optimizer.skipped_steps == 2
    params_of(optimizer)[0].grad[0] = value
    optimizer.step(zero_grad="to_none")
    assert [p.grad for p in params_of(optimizer)] == [None] * 4, "a skipped step drops gradients as any other"


@pytest.mark.parametrize("group", [0, 1])
@pytest.mark.parametrize("limits", [(None, None), (1.0, None), (None, 1.0)])
def test_one_group_asks_for_all(group: int, limits: Any) -> None:
    """A step is left out whole, whichever group has asked and whichever has the NaN, also one that torch steps."""
    params = [*make_params([(3,)]), Parameter(torch.ones(2, dtype=torch.complex64))]
    groups = [{"params": [p], "max_grad_norm": limit} for p, limit in zip(params, limits, strict=True)]
    groups[0]["skip_nonfinite"] = True
    optimizer = fusedoptim.Adam(groups)
    for p in params:
        p.grad = torch.ones_like(p)
    params[group].grad[0] = math.nan
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert not optimizer.state


@pytest.mark.parametrize("norm_type", [2, 1, 3, 0, math.inf])
@pytest.mark.parametrize(("value", "skipped"), [(math.nan, 1), (math.inf, 1), (1e30, 0)])
def test_pending_clips_of_any_norm(norm_type: float, value: float, skipped: int) -> None:
    optimizer = fusedoptim.SGD(make_params([(3,)]), lr=1.0, skip_nonfinite=True)
    params_of(optimizer)[0].grad = torch.tensor([1.0, value, 2.0])
    optimizer.clip_grad_norm_(1.0, norm_type)
    optimizer.step()
    assert optimizer.skipped_steps == skipped


def test_the_norm_is_of_the_groups_with_a_limit() -> None:
    """Its dtype as well."""
    wide = Parameter(torch.zeros(3, dtype=torch.float64))
    groups = [{"params": [wide]}, {"params": make_params(), "max_grad_norm": 0.5}]
    optimizer = fusedoptim.SGD(groups, lr=0.1, skip_nonfinite=True)
    for seed in range(2):
        set_grads(optimizer, seed)
        wide.grad = torch.full((3,), 1e200, dtype=torch.float64)  # finite, as its square is not
        expected = torch.nn.utils.get_total_norm([p.grad for p in params_of(optimizer)[1:]])
        optimizer.step()
        torch.testing.assert_close(optimizer.grad_norm, expected)
        assert optimizer.skipped_steps == 0


def test_elements_are_added_in_the_order_of_rows() -> None:
    """Also where they do not lie so, and whatever path takes the step."""
    left = []
    for layout in (torch.contiguous_format, torch.channels_last):
        p = Parameter(torch.zeros(5, 40, 7, 9).to(memory_format=layout))
        optimizer = fusedoptim.Adam([p], max_grad_norm=0.5)
        for seed in range(3):
            p.grad = helpers.randn(p.shape, seed).to(memory_format=layout)
            optimizer.step()
            left.append((optimizer.grad_norm.item(), p.detach().flatten().tolist()))
    assert left[:3] == left[3:]


@pytest.mark.parametrize("limit", [None, 1.0])
def test_squares_that_overflow_are_finite_all_the_same(limit: float | None) -> None:
    param = Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = fusedoptim.SGD([param], lr=1.0, skip_nonfinite=True, max_grad_norm=limit)
    param.grad = torch.full_like(param, 1e200)
    optimizer.step()
    assert optimizer.skipped_steps == 0
    assert float(param.detach().max()) == pytest.approx(-1e200 if limit is None else -0.5)


def test_without_it_a_nan_goes_into_all() -> None:
    optimizer = fusedoptim.SGD(make_params([(3,), (2,)]), lr=1.0, max_grad_norm=1.0)
    set_grads(optimizer, 1)
    params_of(optimizer)[0].grad[0] = math.nan
    optimizer.step()
    assert all(p.isnan().all() for p in params_of(optimizer)), "as with torch's clipping"


# ---- where they are said --------------------------------------------------------------------------------------------


@of_names
def test_defaults_and_groups(name: str) -> None:
    params = make_params([(2,), (3,), (4,)])
    cls = getattr(fusedoptim, name)
    optimizer = cls([{"params": params[:1]}, {"params": params[1:2], "max_grad_norm": None}], **SETTINGS)
    optimizer.add_param_group({"params": params[2:]})
    assert [group["max_grad_norm"] for group in optimizer.param_groups] == [0.5, None, 0.5]
    assert [group["skip_nonfinite"] for group in optimizer.param_groups] == [True] * 3
    assert inspect.signature(cls).parameters["max_grad_norm"].default is None
    assert cls.__doc__.count("max_grad_norm (float") == cls.__doc__.count("skip_nonfinite (bool") == 1
    assert cls.__doc__.index("fused (bool") < cls.__doc__.index("max_grad_norm") < cls.__doc__.index(".. note::")
    assert optimizer.grad_norm is None
    assert optimizer.skipped_steps == 0


@of_names
@of_bad
def test_wrong_values(name: str, setting: str, value: Any) -> None:
    cls = getattr(fusedoptim, name)
    with pytest.raises(ValueError, match=f"^{setting} must be .*, got "):
        cls(make_params(), **{setting: value})
    optimizer = cls([{"params": [p]} for p in make_params()])
    optimizer.param_groups[2][setting] = value
    set_grads(optimizer, 0)
    before = everything_of(optimizer)
    with pytest.raises(ValueError, match=f"^{setting} must be .*, got .* in parameter group 2$"):
        optimizer.step()
    optimizer.param_groups[2][setting], changed = None, optimizer.param_groups[2][setting]
    optimizer.param_groups[2][setting] = changed
    assert everything_of(optimizer)[1:] == before[1:]


# ---- files ----------------------------------------------------------------------------------------------------------


@of_names
def test_without_settings_a_file_is_torchs(name: str) -> None:
    files = []
    for module in (fusedoptim, torch.optim):
        optimizer = getattr(module, name)(make_params(), lr=0.1)
        optimizer.step()
        files.append(pickle.dumps(optimizer.state_dict()))
    assert files[0] == files[1]


@of_names
def test_settings_go_with_the_file(name: str) -> None:
    cls = getattr(fusedoptim, name)
    saved, plain = cls(make_params(), **SETTINGS), cls(make_params())
    for optimizer in (saved, plain):
        set_grads(optimizer, 0)
        optimizer.step()
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    for match in ("index", "name"):
        named = lambda: [(str(i), p) for i, p in enumerate(make_params())]  # noqa: E731
        state = cls(named(), **SETTINGS).state_dict() if match == "name" else loaded
        into = cls(named())
        into.load_state_dict(state, match=match)
        assert {key: into.param_groups[0][key] for key in SETTINGS} == SETTINGS
    other = cls(make_params(), max_grad_norm=7.0)
    other.load_state_dict(plain.state_dict())
    assert other.param_groups[0]["max_grad_norm"] == 7.0, "a file without them keeps what the optimizer was made with"
    other.load_state_dict(loaded)
    assert other.param_groups[0]["max_grad_norm"] == 0.5
    torchs = getattr(torch.optim, name)(make_params())
    torchs.load_state_dict(loaded)
    assert fusedoptim.convert_state_dict(loaded)["param_groups"] == loaded["param_groups"]
    assert fusedoptim.from_torch(torchs).param_groups[0]["max_grad_norm"] == 0.5


@of_names
@of_bad
def test_files_with_wrong_values(name: str, setting: str, value: Any) -> None:
    cls = getattr(fusedoptim, name)
    optimizer = cls(make_params(), **SETTINGS)
    state = cls(make_params()).state_dict()
    state["param_groups"][0][setting] = value
    before = everything_of(optimizer)
    with pytest.raises(ValueError, match=rf"param_groups'\]\[0\]\['{setting}'\]: must be .*, got .*Nothing was loaded"):
        optimizer.load_state_dict(state)
    assert everything_of(optimizer) == before
