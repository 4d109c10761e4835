"""How long do `step` and `zero_grad` take in absolute terms, on the parameter shapes of known models?

For pytest-benchmark, whose options apply: `python -m benchmarks bench-step --benchmark-json=FILE`. Every entry stores
in `extra_info` the bytes that the call must move, the bandwidth reached, its share of the machine's streaming limit
(the same traffic with almost no arithmetic, measured just before and just after), and whether the result is correct,
which is checked. For ratios between variants use `python -m benchmarks step`: it interleaves them, and so does not
mistake a change in the machine for one in the code.
"""

import statistics
from functools import partial
from itertools import product
from typing import Any

import pytest

from benchmarks.shared import measure
from benchmarks.shared.arena import STEP_VARIANTS, Arena
from benchmarks.shared.measure import Call, time_rounds
from benchmarks.shared.probe import Probe
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import OURS, RULES

LIMIT_ROUNDS = 5  # before and after each benchmark
WARM_UP = 3
PUBLISHED_SIZES = {"resnet50": (161, 25_557_032), "gpt2": (148, 124_439_808)}


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
        self.step_probe, self.fill_probe = self.arena.probe(), Probe("fill", [self.arena.grads])

    def run(self, benchmark: Any, call: Call, correct: bool, moved: int, probe: Probe | None) -> None:
        """Times a call that moves so many bytes, on fresh gradients, between two halves of the probe's rounds."""

        def limits() -> list[float]:
            return time_rounds({0: probe}, LIMIT_ROUNDS, before=self.arena.write_grads)[0] if probe else []

        before = limits()
        benchmark.pedantic(call, setup=self.arena.write_grads, rounds=self.model.rounds, warmup_rounds=WARM_UP)
        benchmark.extra_info |= {"bytes": moved, "correct": correct}
        if benchmark.stats and probe:
            limit, seconds = statistics.median(before + limits()), benchmark.stats.stats.median
            rates = {"gb_per_s": moved / seconds / 1e9, "limit_gb_per_s": moved / limit / 1e3}
            benchmark.extra_info |= {**rates, "limit_share": limit / 1e6 / seconds}
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
    case.run(benchmark, case.arena.step(variant), case.verdicts[variant].correct, moved, case.step_probe)


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
    moved, probe = (0, None) if to_none else (4 * case.model.elements, case.fill_probe)
    case.run(benchmark, zero_grad, correct, moved, probe)


@pytest.mark.parametrize("model", PUBLISHED_SIZES)
def test_shapes_are_the_published_ones(model: str) -> None:
    assert (len(MODELS[model].shapes), MODELS[model].elements) == PUBLISHED_SIZES[model]
