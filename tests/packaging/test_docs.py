"""The examples of the README and of every page in docs run, and print what they say."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted([README, *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_doctests(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where examples may save files
    result = doctest.testfile(str(page), module_relative=False)  # as under plain `python -m doctest page.md`
    assert result.failed == 0
    assert result.attempted >= page.read_text().count("```python\n>>>")


def test_first_example_runs() -> None:
    first = re.search(r"```python\n(import.*?)```", README.read_text(), re.DOTALL)
    assert first is not None
    exec(first.group(1), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
