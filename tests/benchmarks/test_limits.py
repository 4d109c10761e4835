"""What ``python -m benchmarks limits`` measures: sizes, traffic, wrong steps that are marked."""

from __future__ import annotations

import json
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.limits import run as limits
from benchmarks.publish import sections
from benchmarks.shared import arena, compiled, shapes, variants

MIB = 1 << 20
compiler = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="compiles the limit")


def case(rule: str, dtype: str, elements: int = 5000) -> Any:
    return limits.Case("L2", "L2", shapes.Model(((elements,),), 3, 2), rule, dtype)


@pytest.mark.parametrize("rule", variants.LABELS)
def test_traffic_is_that_of_the_tensors_that_a_step_reads_and_writes(rule: str) -> None:
    p = torch.nn.Parameter(torch.rand(64))
    p.grad = torch.rand(64)
    optimizer = variants.VARIANTS["torch-forloop"].build(rule, [p], 0.1)
    optimizer.step()
    state = [t for t in optimizer.state[p].values() if isinstance(t, torch.Tensor) and t.shape == p.shape]
    assert variants.ALL_RULES[rule].operands == 2 + len(state)
    for dtype, size in (("fp32", 4), ("bf16", 2), ("fp16", 2)):
        some = case(rule, dtype)
        assert some.held == 5000 * size * (2 + len(state))  # parameter, gradient, state
        assert some.bytes == 5000 * size * (2 + 1 + 2 * len(state))  # the gradient is only read


def write_cache(root: Path, level: int, kind: str, size: str, shared: str) -> None:
    folder = root / "cpu0" / "cache" / f"index{level if kind == 'Unified' else kind}"
    folder.mkdir(parents=True)
    for name, text in (("level", str(level)), ("type", kind), ("size", size), ("shared_cpu_list", shared)):
        (folder / name).write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("l2_shared", "threads", "expected"),
    [("0", 1, 2), ("0", 4, 8), ("0-1", 1, 2), ("0-1", 4, 4), ("0,32", 3, 4), ("0-3,8-11", 8, 2)],
)
def test_sizes_of_caches(tmp_path: Path, l2_shared: str, threads: int, expected: int) -> None:
    write_cache(tmp_path, 1, "Data", "48K", "0")
    write_cache(tmp_path, 2, "Unified", "2048K", l2_shared)
    write_cache(tmp_path, 3, "Unified", "32M", "0-63")
    assert limits.caches(threads, tmp_path) == {"L2": expected * MIB, "L3": 32 * MIB}


def test_a_machine_that_does_not_tell_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="second-level"):
        limits.caches(2, tmp_path)


def test_sizes_fit_their_caches_and_no_smaller_ones() -> None:
    assert limits.budgets({"L2": 4 * MIB, "L3": 260 * MIB}) == {"L2": 3 * MIB, "L3": 64 * MIB}
    assert limits.budgets({"L2": 4 * MIB, "L3": 64 * MIB}) == {"L2": 3 * MIB, "L3": 16 * MIB}
    assert list(limits.budgets({"L2": 4 * MIB, "L3": 16 * MIB})) == ["L2"]
    assert list(limits.budgets({"L2": 4 * MIB})) == ["L2"]
    budgets = {"L2": 3 * MIB, "L3": 64 * MIB}
    cases = list(limits.make_cases(budgets))
    assert len(cases) == len({(c.place, *c.key) for c in cases}) == 3 * 15 + 6
    for some in cases:
        if some.place in budgets:
            assert 0.999 * budgets[some.place] < some.held <= budgets[some.place]
            assert some.model.elements % 64 == 0


# ---- mistakes that must be marked -----------------------------------------------------------------------------------
def leaves_last(cls: Any) -> Any:
    """An optimizer that forgets the last element of each parameter."""

    class Wrong(cls):  # type: ignore[misc]
        def step(self) -> None:
            last = [p.detach()[-1].clone() for p in self.param_groups[0]["params"]]
            super().step()
            for p, old in zip(self.param_groups[0]["params"], last, strict=True):
                p.detach()[-1] = old

    return Wrong


def without(cls: Any, **replaced: Any) -> Any:
    """An optimizer that is deaf to an option."""
    return lambda params, **options: cls(params, **{**options, **replaced})


MISTAKES = [
    ("adam", leaves_last(torch.optim.Adam)),
    ("sgd-plain", leaves_last(torch.optim.SGD)),
    ("adam-amsgrad", leaves_last(torch.optim.Adam)),
    ("adam-amsgrad", without(torch.optim.Adam, amsgrad=False)),
    ("adamw-decay", without(torch.optim.AdamW, weight_decay=0.0)),
    ("sgd", without(torch.optim.SGD, momentum=0.0)),
]


@pytest.mark.parametrize("stride", [1, limits.STRIDE])
@pytest.mark.parametrize("dtype", variants.DTYPES)
@pytest.mark.parametrize(("rule", "wrong"), MISTAKES)
def test_a_planted_mistake_is_marked(
    rule: str, wrong: Callable[..., Any], dtype: str, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = variants.ALL_RULES[rule].class_name
    module = types.SimpleNamespace(**{name: wrong})
    monkeypatch.setitem(variants.VARIANTS, "torch-fused", variants.Variant("torch-fused", module, {}))
    some = arena.Arena(case(rule, dtype).model, rule, variants.DTYPES[dtype], stride, limits.YARDSTICKS)
    verdicts = some.check(limits.VARIANTS)
    assert verdicts[variants.OURS].correct
    assert not verdicts["torch-fused"].correct


def figures(correct: bool) -> dict[str, Any]:
    spread = {"median": 2.0, "low": 2.0, "high": 2.0}
    return {"time": spread, "ratio": spread, "limit_share": spread, "gb_per_s": 1.0, "correct": correct}


def test_wrong_results_are_marked_in_the_tables() -> None:
    result = {"place": "L2", "model_name": "L2", "rule": "adam", "dtype": "fp32", "held": 1,
              "variants": {variants.OURS: figures(True), "torch-fused": figures(False)}}  # fmt: skip
    (table,) = limits.tables({"results": [result]})
    assert list(table.rows) == [("Adam, fp32", "1.0", "2.000", "2.00 (2.00 x)", "WRONG", "")]


# ---- torch.compile and the clock ------------------------------------------------------------------------------------
def test_steps_that_are_compiled_again_are_noticed() -> None:
    p = torch.nn.Parameter(torch.rand(64))
    p.grad = torch.rand(64)
    optimizer = torch.optim.SGD([p], lr=0.1)
    step = compiled.CompiledStep(optimizer, backend="eager")
    step()
    step.require_one_graph()
    optimizer.param_groups[0]["lr"] = 0.2
    step()
    with pytest.raises(RuntimeError, match="2 graphs"):
        step.require_one_graph()


def test_what_is_compiled_and_for_how_long() -> None:
    large, small = (
        limits.Case("shapes", name, shapes.MODELS[name], "adam", "fp32") for name in ("400x64", "tutorial-mlp")
    )
    assert limits.wants_compiled(large)
    assert limits.compiling_seconds(large) == 100 * limits.compiling_seconds(small)
    assert limits.wants_compiled(case("adam-amsgrad", "bf16"))
    assert not limits.wants_compiled(limits.Case("memory", "gpt2", shapes.MODELS["gpt2"], "adam", "bf16"))


# ---- all of it ------------------------------------------------------------------------------------------------------
@compiler
@pytest.mark.parametrize("right", [True, False])
def test_a_whole_run(right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not right:  # plants a mistake in ours
        module = types.SimpleNamespace(SGD=leaves_last(torch.optim.SGD))
        monkeypatch.setitem(variants.VARIANTS, variants.OURS, variants.Variant(variants.OURS, module, {}))
    monkeypatch.setattr(limits, "caches", lambda threads: {"L2": MIB})
    monkeypatch.setattr(limits, "wants_compiled", lambda case: False)
    options = "--quick --place L2 --optimizer sgd-plain --dtype fp32 --output"
    assert limits.main([*options.split(), str(tmp_path)]) == (0 if right else 1)
    record = json.loads((tmp_path / "limits.json").read_text())
    (result,) = record["results"]
    ours, limit = result["variants"][variants.OURS], result["variants"][limits.LIMIT]
    assert ours["correct"] == right
    assert result["bytes"] == 12 * result["elements"]
    assert limit["time"]["median"] == min(way["time"] for way in result["limit"])
    assert ("WRONG |" in "\n".join(sections.limits(record))) == (not right)
