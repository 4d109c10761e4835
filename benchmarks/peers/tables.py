"""The section of a page on what `run.py` has measured: one table, what is faster than ours, and what does not run."""

from collections.abc import Iterator

from benchmarks.peers.list import PEERS
from benchmarks.shared.files import Record
from benchmarks.shared.report import Table, about, bold, number
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import OURS, RULES

LONG_S = 5


def cell(figures: Record | None) -> str:
    """A time in microseconds and how many times ours it is; bold where that is less than once."""
    if figures is None:
        return "-"
    times = figures["ratio"]["median"]
    text = bold(f"{number(figures['time']['median'])} ({times:.2f} x)", times < 1)
    return f"WRONG: {text}" if figures["result"] == "WRONG" else text


def rows(record: Record) -> Iterator[list[str]]:
    """A row for each peer with each optimizer, ours first; memory is that on the largest model."""
    for rule, kind in RULES.items():
        results = {result["model"]: result["variants"] for result in record["results"] if result["optimizer"] == rule}
        for name in PEERS:
            measured = [results[model][name] for model in MODELS if name in results.get(model, ())]
            if not measured:
                continue
            setup = record["setup"].get(name, {"error": "not measured"})
            yield [
                f"{kind.class_name}, {name}",
                *(cell(results.get(model, {}).get(name)) for model in MODELS),
                *(f"{max(figures['error'][key] for figures in measured):.1e}" for key in ("overall", "worst")),
                " or ".join(dict.fromkeys(figures["result"] for figures in measured)),
                number(measured[-1]["state_bytes_per_element"]),
                "-" if "error" in setup else number(setup["install_s"] + setup["first_step_s"]),
            ]


def figures_of(record: Record) -> Iterator[tuple[str, str, Record]]:
    for result in record["results"]:
        yield from ((name, case_name(result), figures) for name, figures in result["variants"].items())


def case_name(result: Record) -> str:
    return f"{RULES[result['optimizer']].class_name} on {result['model']}"


def faster(record: Record) -> str:
    """Whatever took less time than ours, with how sure that is."""
    found = []
    for name, case, figures in figures_of(record):
        times = figures["ratio"]
        if name != OURS and times["median"] < 1:
            quartiles = f"quartiles {times['low']:.2f} and {times['high']:.2f}"
            found.append(f"{name}, {case} ({times['median']:.2f} x, {quartiles}, {figures['result']})")
    return f"Faster than {OURS}: {'; '.join(found) or 'none'}."


def compiling(record: Record) -> str:
    """The first steps that took longest: those that compile, but for what came from the cache of an earlier run."""
    longest: dict[str, tuple[float, str]] = {}
    for name, case, figures in figures_of(record):
        if not figures["from_cache"]:
            longest[name] = max(longest.get(name, (0.0, "")), (figures["first_step_s"], case))
    found = (f"{name} {number(seconds)} s ({case})" for name, (seconds, case) in longest.items() if seconds > LONG_S)
    return f"First steps of more than {LONG_S} s, the longest of each: {'; '.join(found) or 'none'}."


def not_measured(record: Record) -> Iterator[str]:
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


def section(record: Record) -> Iterator[str]:
    models = (f"{name}: {model.elements:,} in {len(model.shapes)}" for name, model in MODELS.items())
    header = ["µs per step (times ours)", *MODELS, "error", "worst", "result", "state, B", "set-up, s"]
    yield ""
    yield from Table(header, rows(record)).markdown()
    yield f"\nElements and tensors: {'; '.join(models)}.\n"
    yield f"{faster(record)}\n"
    yield f"{compiling(record)}\n"
    yield "![Time of a step beside fusedoptim's](../benchmarks/results/peers.png)\n"
    yield "Not measured, and why (exceptions as the package raised them):\n"
    yield from not_measured(record)
    yield ""
    parts = [*record["results"], *record["setup"].values()]
    for machine in dict.fromkeys(map(about, parts)):
        yield f"{machine}  "
    for part in parts[:1]:
        named = (f"{package} {version}" for package, version in part["versions"].items())
        yield f"Python {part['machine']['python']}, {', '.join(named)}  "
    if any(result["settings"]["quick"] for result in record["results"]):
        yield "\n**From a short run: no figures to quote.**"
    yield ""
