"""Which places in one buffer a parameter and its state may have: any, as long as no two share an element."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import fusedoptim

Places = tuple[slice, slice, slice]
APART: dict[str, Places] = {
    "one after the other": (slice(7, 14), slice(14, 21), slice(21, 28)),
    "one in the gaps of another": (slice(8, 57, 8), slice(9, 16), slice(60, 67)),
    "all in gaps": (slice(8, 27, 3), slice(9, 28, 3), slice(10, 29, 3)),
}
SHARED: dict[str, tuple[Places, tuple[str, str]]] = {
    "the last two": ((slice(8, 15), slice(20, 33, 2), slice(32, 45, 2)), ("exp_avg_sq", "max_exp_avg_sq")),
    "a third behind the gaps": ((slice(8, 57, 8), slice(9, 16), slice(24, 31)), ("exp_avg", "max_exp_avg_sq")),
    "the first element of another": ((slice(8, 15), slice(14, 21), slice(30, 37)), ("exp_avg", "exp_avg_sq")),
    "the parameter": ((slice(20, 27), slice(0, 19, 3), slice(30, 37)), ("exp_avg_sq", "shape (7,)")),
}


def loaded(places: Places) -> None:
    buffer = torch.ones(80)
    optimizer = fusedoptim.Adam([Parameter(buffer[:7])], amsgrad=True)
    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    state: dict[str, Tensor] = {name: buffer[place] for name, place in zip(names, places, strict=True)}
    saved = optimizer.state_dict()
    optimizer.load_state_dict({**saved, "state": {0: {"step": torch.tensor(1.0), **state}}})
    assert len(optimizer.state) == 1


@pytest.mark.parametrize("places", APART.values(), ids=APART)
def test_places_apart(places: Places) -> None:
    loaded(places)


@pytest.mark.parametrize(("places", "words"), SHARED.values(), ids=SHARED)
def test_places_that_share_an_element(places: Places, words: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="shares memory with") as caught:
        loaded(places)
    assert all(f"state['{word}']" in str(caught.value) or word in str(caught.value) for word in words)
