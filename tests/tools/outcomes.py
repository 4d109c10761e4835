"""A scenario with ours and with torch's optimizers: what it returns or raises, and what it warns of."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

import fusedoptim

OPTIONS = {"SGD": {"lr": 0.1, "momentum": 0.9}, "Adam": {"lr": 0.1}, "AdamW": {"lr": 0.1, "weight_decay": 0.2}}


def outcomes(name: str, scenario: Callable[[Any], Any], **options: Any) -> list[tuple[Any, list[str]]]:
    """What a scenario returns or raises, and its warnings, with ours and with torch's for-loop."""
    results = []
    for module, flags in ((fusedoptim, {}), (torch.optim, {"foreach": False})):
        torch.manual_seed(0)

        def make(params: Any, m: Any = module, f: Any = flags) -> Any:
            return getattr(m, name)(params, **OPTIONS[name], **options, **f)

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = scenario(make)
            except Exception as error:
                result = type(error), str(error).split(" in parameter")[0]
        results.append((result, [str(w.message) for w in caught]))
    return results


def assert_same_outcome(name: str, scenario: Callable[[Any], Any], **options: Any) -> Any:
    """Returns ours."""
    ours, theirs = outcomes(name, scenario, **options)
    assert ours[1] == theirs[1]
    if isinstance(theirs[0], tuple):
        assert ours[0] == theirs[0]
    else:
        torch.testing.assert_close(ours[0], theirs[0], **({"rtol": 0, "atol": 0} if name == "SGD" else {}))
    return ours[0]
