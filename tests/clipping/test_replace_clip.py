"""``replace_clip_grad_norm`` puts our clipping in torch's place, and takes it away again."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils import clip_grad, clip_grad_norm_
from torch.utils.flop_counter import FlopCounterMode

import fusedoptim


def assert_torchs() -> None:
    assert torch.nn.utils.clip_grad_norm_ is clip_grad.clip_grad_norm_ is clip_grad_norm_
    assert clip_grad_norm_ is not fusedoptim.clip_grad_norm_


def assert_ours() -> None:
    assert torch.nn.utils.clip_grad_norm_ is clip_grad.clip_grad_norm_ is fusedoptim.clip_grad_norm_


def test_in_the_block_and_no_longer() -> None:
    assert_torchs()
    with fusedoptim.replace_clip_grad_norm():
        assert_ours()
        with fusedoptim.replace_clip_grad_norm():
            assert_ours()
        assert_ours()
    assert_torchs()


def test_after_an_exception() -> None:
    with pytest.raises(KeyError), fusedoptim.replace_clip_grad_norm():
        raise KeyError
    assert_torchs()


def test_what_else_was_put_there_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", len)
    with fusedoptim.replace_clip_grad_norm():
        assert_ours()
    assert torch.nn.utils.clip_grad_norm_ is len
    assert clip_grad.clip_grad_norm_ is clip_grad_norm_


def test_where_our_clipping_leaves_it_to_torchs_it_is_torchs() -> None:
    """Which a mode of torch watches, and which would call ours again if it looked for the name."""
    p = torch.nn.Parameter(torch.zeros(4))
    optimizer = fusedoptim.SGD([p], lr=1.0)
    with fusedoptim.replace_clip_grad_norm(), FlopCounterMode(display=False):
        for clip in (lambda: torch.nn.utils.clip_grad_norm_([p], 1.0), lambda: optimizer.clip_grad_norm_(1.0)):
            p.grad = torch.ones(4)
            assert clip() == 2
            torch.testing.assert_close(p.grad, torch.full((4,), 0.5))
