"""Which pages and charts are older than the results? It writes them anew: pages, the tables of the README, charts.

Each section of a page stands between two marks and is made from one or two files of results, and nothing else; so is
each chart, which notes the digest of its results in the PNG. What is as the results have it stays untouched.

Output: the pages and charts that it has changed; with `--check` it changes nothing. Exit status 1 if one was older.
"""

import argparse
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks import ROOT
from benchmarks.publish import charts, sections
from benchmarks.shared.files import RESULTS, load_json
from benchmarks.shared.variants import RULES

Lines = Callable[..., Iterator[str]]


class Section(NamedTuple):
    """A part of a page."""

    page: str
    name: str
    results: tuple[str, ...]  # names of the files whose records `lines` is given
    lines: Lines


class Chart(NamedTuple):
    """A chart beside the results."""

    name: str
    results: str
    draw: Callable[..., None]  # given a record, the path and the note for the PNG


SECTIONS = (
    Section("README.md", "figures", ("train_loop", "compare_step"), sections.figures),
    Section("docs/measurements.md", "host costs", ("host_costs",), sections.host_costs),
    Section("docs/measurements.md", "kernel costs", ("kernel_costs",), sections.kernel_costs),
    Section("docs/in_backward.md", "in backward", ("in_backward",), sections.in_backward),
    Section("docs/benchmarks.md", "peers", ("peers",), sections.peers),
    Section("docs/benchmarks.md", "busy", ("busy",), sections.busy),
    Section("docs/benchmarks.md", "cliffs", ("cliffs",), sections.cliffs),
    Section("docs/benchmarks.md", "tail", ("tail",), sections.tail),
    Section("docs/benchmarks.md", "limits", ("limits",), sections.limits),
    Section("docs/benchmarks.md", "growth", ("growth",), sections.growth),
)
CHARTS = (
    *(Chart(f"train_loop-{rule}", "train_loop", partial(charts.loops, rule)) for rule in RULES),
    Chart("growth", "growth", charts.growth),
    Chart("peers", "peers", charts.peers),
)


def marks(section: str) -> tuple[str, str]:
    """The lines between which a generated section of a file stands."""
    return f"<!-- {section}: begin -->", f"<!-- {section}: end -->"


def replaced(text: str, section: str, lines: Sequence[str]) -> str:
    """A page with other lines in one of its sections; raises ValueError if it has no such section."""
    begin, end = marks(section)
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"the page lacks the lines {begin} and {end}")
    return "\n".join((before + begin, *lines, end + after))


def older(root: Path = ROOT, results: Path = RESULTS, write: bool = False) -> list[str]:
    """The sections and charts that are not as the results have them; they are then, if `write`."""
    found = []
    for section in SECTIONS:
        page = root / section.page
        text, records = page.read_text(), (load_json(results / f"{name}.json") for name in section.results)
        new = replaced(text, section.name, list(section.lines(*records)))
        if new != text:
            found.append(f"{section.page}, {section.name}")
            if write:
                page.write_text(new)
    for chart in CHARTS:
        path, source = results / f"{chart.name}.png", results / f"{chart.results}.json"
        note = f"results {hashlib.sha256(source.read_bytes()).hexdigest()}"  # in the PNG: what it was drawn from
        if not path.exists() or note.encode() not in path.read_bytes():
            found.append(path.name)
            if write:
                chart.draw(load_json(source), path, note)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if something is older")
    args = parser.parse_args(arguments)
    found = older(write=not args.check)
    print(*(f"{'older than its results' if args.check else 'written'}: {what}" for what in found), sep="\n")
    print(f"{len(SECTIONS)} sections and {len(CHARTS)} charts, {len(found)} were older")
    return int(args.check and bool(found))
