"""Which pages and charts are older than the results? It writes them anew: pages, the tables of the README, charts.

Each section of a page stands between two marks and is made from one or two files of results, and nothing else; so is
each chart, which notes the digest of its results in the PNG. What is as the results have it stays untouched.

Output: the pages and charts that it has changed; with `--check` it changes nothing. Exit status 1 if one was older.
"""

import argparse
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks import ROOT
from benchmarks.publish import charts, sections
from benchmarks.shared.files import RESULTS, load_json
from benchmarks.shared.variants import RULES

PAGES = {
    "README.md": ("figures",),
    "docs/measurements.md": ("host costs", "kernel costs"),
    "docs/in_backward.md": ("in backward",),
    "docs/storage.md": ("storage", "quality"),
    "docs/benchmarks.md": ("peers", "busy", "cliffs", "tail", "limits", "growth"),
}
SECTIONS = [(page, name) for page, names in PAGES.items() for name in names]
RESULTS_OF = {"figures": ("train_loop", "compare_step")}  # of other sections the one file that is called as they are
CHARTS: dict[str, tuple[str, Callable[..., None]]] = {  # the file of results, and what draws it
    **{f"train_loop-{rule}": ("train_loop", partial(charts.loops, rule)) for rule in RULES},
    "quality": ("quality", charts.quality),
}


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
    for name, section in SECTIONS:
        page, function = root / name, section.replace(" ", "_")
        text, files = page.read_text(), RESULTS_OF.get(section, (function,))
        lines = getattr(sections, function, partial(sections.tables_of, section.replace(" ", "-")))
        new = replaced(text, section, list(lines(*(load_json(results / f"{file}.json") for file in files))))
        if new != text:
            found.append(f"{name}, {section}")
            if write:
                page.write_text(new)
    for name, (file, draw) in CHARTS.items():
        path, source = results / f"{name}.png", results / f"{file}.json"
        note = f"results {hashlib.sha256(source.read_bytes()).hexdigest()}"  # in the PNG: what it was drawn from
        if not path.exists() or note.encode() not in path.read_bytes():
            found.append(path.name)
            if write:
                draw(load_json(source), path, note)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if something is older")
    args = parser.parse_args(arguments)
    found = older(write=not args.check)
    print(*(f"{'older than its results' if args.check else 'written'}: {what}" for what in found), sep="\n")
    print(f"{len(SECTIONS)} sections and {len(CHARTS)} charts, {len(found)} were older")
    return int(args.check and bool(found))
