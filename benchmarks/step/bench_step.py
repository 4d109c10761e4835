"""How long do `step` and `zero_grad` take in absolute terms, on the parameter shapes of known models?

For pytest-benchmark, whose options apply: `python -m benchmarks bench-step --benchmark-json=FILE`. Every entry stores
in `extra_info` the bytes that the call must move, the bandwidth reached, and whether the result is correct, which is
checked. For ratios between variants and to the streaming limit use `python -m benchmarks step`: it interleaves them,
and so does not mistake a change in the machine for one in the code.
"""

from functools import partial
from itertools import product
from typing import Any

import pytest

from benchmarks.shared import measure
from benchmarks.shared.arena import STEP_VARIANTS, Arena
from benchmarks.shared.measure import Call
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import OURS, RULES

WARM_UP = 3


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """As a plugin of pytest: adds what our figures depend on and leaves out the name of the host."""
    machine_info.pop("node", None)
    machine_info["fusedoptim"] = measure.machine_info()


class Case:
    """An arena and what the check found on it."""

    def __init__(self, model: str, rule: str) -> None:
        self.name = f"{RULES[rule].class_name} {model}"
        self.model, self.rule = MODELS[model], RULES[rule]
        self.arena = Arena(self.model, rule)
        self.verdicts = self.arena.check(STEP_VARIANTS)

    def run(self, benchmark: Any, call: Call, correct: bool, moved: int) -> None:
        """Times a call that moves so many bytes, on fresh gradients."""
        benchmark.pedantic(call, setup=self.arena.write_grads, rounds=self.model.rounds, warmup_rounds=WARM_UP)
        benchmark.extra_info |= {"bytes": moved, "correct": correct}
        if benchmark.stats:
            benchmark.extra_info["gb_per_s"] = moved / benchmark.stats.stats.median / 1e9
        assert correct


@pytest.fixture(scope="module", params=list(product(MODELS, ("adam", "sgd"))), ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    """The shapes and the rule; one case is in memory at a time."""
    return Case(*request.param)


@pytest.mark.parametrize("variant", STEP_VARIANTS)
def test_step(benchmark: Any, case: Case, variant: str) -> None:
    benchmark.group = f"step: {case.name}"
    benchmark.extra_info["error"] = case.verdicts[variant].error.overall
    moved = case.model.elements * case.rule.bytes_per_element
    case.run(benchmark, case.arena.step(variant), case.verdicts[variant].correct, moved)


@pytest.mark.parametrize("to_none", [False, True], ids=["to_zero", "to_none"])
@pytest.mark.parametrize("variant", ["torch-default", OURS])
def test_zero_grad(benchmark: Any, case: Case, variant: str, to_none: bool) -> None:
    """Clearing all gradients: writing zeros moves 4 bytes per element, dropping them moves nothing."""
    benchmark.group = f"zero_grad {'to_none' if to_none else 'to_zero'}: {case.name}"
    zero_grad = partial(case.arena.optimizer(variant).zero_grad, set_to_none=to_none)
    case.arena.write_grads()
    zero_grad()
    grads = [p.grad for p in case.arena.params]
    correct = all(g is None for g in grads) if to_none else not any(g is None or g.any() for g in grads)
    case.run(benchmark, zero_grad, correct, 0 if to_none else 4 * case.model.elements)
