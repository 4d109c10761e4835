"""The results of `limits.py` as tables: on the console, and as a section of docs/benchmarks.md."""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from benchmarks.limits.cases import LABELS, MIB, TARGETS, Case
from benchmarks.publish.markdown import cell, marks, table, write_into
from benchmarks.shared.compiled import COMPILED
from benchmarks.shared.measure import Spread
from benchmarks.shared.report import (
    RESULTS,
    Claim,
    Times,
    check_claims,
    claims_table,
    correct_text,
    machine_line,
    make_table,
    number,
    spread_text,
)
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import OURS
from benchmarks.step.run import LIMIT

Result = Mapping[str, Any]
SECTION = "limits"
PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "benchmarks.md"
HEADER = "# Benchmarks\n"
NAMES = (OURS, "torch-fused", COMPILED)
NEVER_SLOWER = 1.0  # than a compiled step, as the ratio of its time to ours
TITLES = {
    "L2": "in the second-level caches",
    "L3": "in the third-level cache",
    "memory": "from memory",
    "shapes": "shapes of known models",
}
PROSE = """\
The limit is the time in which this machine reads and writes the same bytes with almost no arithmetic: parameter and
state read and written, the gradient read. It is given the same means as a step: both threads, the widest vectors,
fetching ahead, every other call backwards so that it begins with what the caches still hold. Of three such ways, all
measured in the rounds, the fastest counts. In brackets: how many times ours it takes. `torch-compiled` is
`torch.compile` of the step of `torch.optim` without flags; GPT-2's steps are compiled for two rules in fp32 only, as
each takes long. WRONG is a result farther from float64 than rounding explains.
"""


def label(result: Result, place: str) -> str:
    """What a row is called in the table of a place: the model and the rule, or rule and dtype."""
    rule = LABELS[result["rule"]]
    return f"{rule}, {result['dtype']}" if place in TARGETS else f"{result['model_name']}, {rule}"


def claims_of(case: Case, times: Times) -> list[dict[str, Any]]:
    """Targets beside what was reached: a share of the limit, and no compiled step that takes less time."""
    claims = [Claim(case.key, LIMIT, OURS, TARGETS[case.place])] if case.place in TARGETS else []
    return check_claims([*claims, Claim(case.key, COMPILED, OURS, NEVER_SLOWER)], {case.key: times})


def of_place(results: Iterable[Result], place: str) -> list[Result]:
    """The results that stand in one table; GPT-2 from memory is also one of the known models."""
    return [
        result
        for result in results
        if result["place"] == place
        or (place == "shapes" and result["model_name"] in MODELS and COMPILED in result["variants"])
    ]


def title(place: str, results: Sequence[Result]) -> str:
    """What the results of one place share."""
    if place == "shapes" or not results:
        return f"{TITLES[place]}, fp32"
    held = [result["held"] / MIB for result in results]
    least, most = (f"{size:,.3g}" if size < 100 else f"{size:,.0f}" for size in (min(held), max(held)))
    return f"{TITLES[place]}, {least if least == most else f'{least} to {most}'} MiB in all"


def console_cell(figures: Result | None) -> str:
    """Time, ratio to ours, and whether the result was correct."""
    if figures is None:
        return "-"
    text = spread_text(Spread(**figures["time"]))
    if not figures["correct"]:
        return f"{text} {correct_text(False)}"
    ratio = figures["ratio"]["median"]
    return f"{text} [green]✓[/]" if ratio == 1 else f"{text} ({ratio:.2f} x) [green]✓[/]"


def place_table(place: str, results: Sequence[Result]) -> Table:
    """The results of one place."""
    rows = []
    for result in (some := of_place(results, place)):
        ours, fused, compiled = (result["variants"].get(name) for name in NAMES)
        rows.append(
            (
                label(result, place),
                console_cell(ours),
                number(ours["gb_per_s"]),
                spread_text(Spread(**ours["limit_share"])),
                console_cell(fused),
                console_cell(compiled),
                f"{compiled['compile_seconds']:.1f}" if compiled else "-",
            )
        )
    return make_table(title(place, some), ("µs (times ours)", OURS, "GB/s", "of limit", *NAMES[1:], "set-up, s"), rows)


def outcomes(claims: Sequence[Result]) -> Iterator[str]:
    """In how many cases each target was reached, and what is farthest from it."""
    kinds: dict[tuple[str, str, float], list[Result]] = {}
    for claim in claims:
        where = f"{claim['case'][0]}" if claim["numerator"] == LIMIT else ""
        kinds.setdefault((claim["numerator"], where, claim["target"]), []).append(claim)
    for (numerator, where, target), some in kinds.items():
        worst = min(some, key=lambda claim: claim["reached"]["median"])
        what = f"share of the limit, {where}" if numerator == LIMIT else f"time of {numerator} over ours"
        yield (
            f"{what}: at least {target:g} in {sum(claim['holds'] for claim in some)} of {len(some)} cases; "
            f"lowest {worst['reached']['median']:.3f} ({', '.join(worst['case'])})"
        )


def summary(record: Result) -> Iterator[RenderableType]:
    """What the console says at the end."""
    if missed := [claim for claim in record["claims"] if not claim["holds"]]:
        yield claims_table(missed)
    yield from outcomes(record["claims"])
    for left_out in record["left_out"]:
        yield f"left out, as the time did not last: {', '.join(left_out)}"


def markdown_rows(place: str, results: Sequence[Result]) -> Iterator[Sequence[str]]:
    """The rows of a place's table in the section."""
    for result in results:
        variants = result["variants"]
        ours = variants[OURS]
        cells = (cell(variants[name], "time", "ratio") if name in variants else "" for name in NAMES)
        yield label(result, place), f"{ours['gb_per_s']:.1f}", f"{ours['limit_share']['median']:.3f}", *cells


def markdown(record: Result) -> Iterator[str]:
    """The lines of the section."""
    yield f"## What the machine allows\n\n{PROSE}"
    for line in outcomes(record["claims"]):
        yield f"- {line}"
    for place in TITLES:
        if not (some := of_place(record["results"], place)):
            continue
        text = title(place, some)
        yield f"\n{text[0].upper()}{text[1:]}:\n"
        yield from table(
            ("µs per step (times ours)", "our GB/s", "share of the limit", *NAMES), markdown_rows(place, some)
        )
    caches = ", ".join(f"{level} {size / MIB:g} MiB" for level, size in sorted(record["caches"].items()))
    machine = record["machine"]
    yield f"\n{machine_line(machine)}, caches of its threads {caches}, {machine['date'][:10]}."
    yield "Reproduce with `python benchmarks/limits.py` and `python benchmarks/limit_tables.py`.\n"


def render(record: Result, page: Path) -> None:
    """Writes the section into a page, which is made if it is not there, as the section is."""
    text = page.read_text() if page.exists() else HEADER
    begin, end = marks(SECTION)
    if begin not in text:
        page.write_text(f"{text}\n{begin}\n{end}\n")
    write_into(page, list(markdown(record)), SECTION)


def main(arguments: Sequence[str] | None = None) -> None:
    """Renders the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=RESULTS / "limits.json", help="the results")
    parser.add_argument("--into", type=Path, default=PAGE, help="the page (default: docs/benchmarks.md)")
    args = parser.parse_args(arguments)
    render(json.loads(args.file.read_text()), args.into)


if __name__ == "__main__":
    main()
