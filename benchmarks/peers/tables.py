"""The section of a page on what `run.py` has measured: one table, what is faster than ours, and what does not run."""

from collections.abc import Iterator, Sequence

from benchmarks.peers.list import PEERS
from benchmarks.shared.report import Record as Result
from benchmarks.shared.report import Table, about, bold, number
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import OURS, RULES

LONG_S = 5


def cell(figures: Result | None) -> str:
    """A time in microseconds and how many times ours it is; bold where that is less than once."""
    if figures is None:
        return "-"
    times = figures["ratio"]["median"]
    text = f"{number(figures['time']['median'])} ({times:.2f} x)"
    text = bold(text, times < 1)
    return f"WRONG: {text}" if figures["result"] == "WRONG" else text


def setup_cell(setup: Result | None) -> str:
    """Seconds from `pip install` to the end of the first step."""
    if setup is None or "error" in setup:
        return "-"
    return number(setup["install_s"] + setup["first_step_s"])


def row(name: str, rule: str, results: Sequence[Result], setup: Result | None) -> list[str]:
    """One peer with one optimizer; memory is that on the largest model."""
    of_rule = {result["model"]: result["variants"].get(name) for result in results if result["optimizer"] == rule}
    measured = [of_rule[model] for model in MODELS if of_rule.get(model)]
    errors = (max(figures["error"][kind] for figures in measured) for kind in ("overall", "worst"))
    results_in_words = dict.fromkeys(figures["result"] for figures in measured)
    return [
        f"{RULES[rule].class_name}, {name}",
        *(cell(of_rule.get(model)) for model in MODELS),
        *(f"{error:.1e}" for error in errors),
        " or ".join(results_in_words),
        number(measured[-1]["state_bytes_per_element"]),
        setup_cell(setup),
    ]


def rows(record: Result) -> Iterator[list[str]]:
    """The rows of the table: optimizer by optimizer, ours first."""
    for rule in RULES:
        for name in PEERS:
            of_rule = (result for result in record["results"] if result["optimizer"] == rule)
            if any(name in result["variants"] for result in of_rule):
                yield row(name, rule, record["results"], record["setup"].get(name))


def case_name(result: Result) -> str:
    """The optimizer and the shapes of a result."""
    return f"{RULES[result['optimizer']].class_name} on {result['model']}"


def faster(record: Result) -> str:
    """Whatever took less time than ours, with how sure that is."""
    found = []
    for result in record["results"]:
        for name, figures in result["variants"].items():
            times = figures["ratio"]
            if name != OURS and times["median"] < 1:
                quartiles = f"quartiles {times['low']:.2f} and {times['high']:.2f}"
                found.append(f"{name}, {case_name(result)} ({times['median']:.2f} x, {quartiles}, {figures['result']})")
    return f"Faster than {OURS}: {'; '.join(found) if found else 'none'}."


def compiling(record: Result) -> str:
    """The first steps that took longest: those that compile, but for what came from the cache of an earlier run."""
    longest: dict[str, tuple[float, str]] = {}
    for result in record["results"]:
        for name, figures in result["variants"].items():
            if not figures["from_cache"]:
                longest[name] = max(longest.get(name, (0.0, "")), (figures["first_step_s"], case_name(result)))
    found = (f"{name} {number(seconds)} s ({case})" for name, (seconds, case) in longest.items() if seconds > LONG_S)
    return f"First steps of more than {LONG_S} s, the longest of each: {'; '.join(found) or 'none'}."


def not_measured(record: Result) -> Iterator[str]:
    """What did not run, or was left out, and why; one line for all cases with the same reason."""
    cases: dict[tuple[str, str], list[str]] = {}
    for result in record["results"]:
        for name, why in result["missing"].items():
            cases.setdefault((name, why), []).append(case_name(result))
    for name, setup in record["setup"].items():
        if "error" in setup:
            cases.setdefault((name, setup["error"]), []).append("set-up")
    for rule in RULES:  # one name for all the shapes of a rule
        every = [case_name(result) for result in record["results"] if result["optimizer"] == rule]
        for where in cases.values():
            if every and set(every) <= set(where):
                where[:] = [RULES[rule].class_name, *(case for case in where if case not in every)]
    for (name, why), where in cases.items():
        yield f"- {name}, {', '.join(where)}: {why}"


def machines(record: Result) -> Iterator[str]:
    """The machines and the versions, each once."""
    parts = [*record["results"], *record["setup"].values()]
    yield from dict.fromkeys(map(about, parts))
    for part in parts[:1]:
        named = (f"{package} {version}" for package, version in part["versions"].items())
        yield f"Python {part['machine']['python']}, {', '.join(named)}"


def section(record: Result) -> Iterator[str]:
    """The lines of the section."""
    models = (f"{name}: {model.elements:,} in {len(model.shapes)}" for name, model in MODELS.items())
    header = ["µs per step (times ours)", *MODELS, "error", "worst", "result", "state, B", "set-up, s"]
    yield ""
    yield from Table(header, rows(record)).markdown()
    yield f"\nElements and tensors: {'; '.join(models)}.\n"
    yield f"{faster(record)}\n"
    yield f"{compiling(record)}\n"
    yield "![Time of a step beside fusedoptim's](../benchmarks/results/peers.png)\n"
    yield "Not measured, and why; what is in the words of a Python exception is what the package raised:\n"
    yield from not_measured(record)
    yield ""
    for line in machines(record):
        yield f"{line}  "
    if any(result["settings"]["quick"] for result in record["results"]):
        yield "\n**From a short run: no figures to quote.**"
    yield ""
