"""Pages and charts are those of the results, and publishing changes what is older and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import ROOT
from benchmarks.publish import run
from benchmarks.shared.files import RESULTS


def test_no_page_and_no_chart_is_older_than_its_results() -> None:
    assert run.older() == [], "make publish writes them"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The pages and the results."""
    for page in run.PAGES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / page, tmp_path / page)
    shutil.copytree(RESULTS, tmp_path / "results")
    return tmp_path


def test_what_is_older_is_written_once(copied: Path) -> None:
    results = copied / "results"
    record = json.loads((results / "train_loop.json").read_text())
    for result in record["results"]:
        result["variants"]["fusedoptim"]["loop"]["median"] = 123456.0
    (results / "train_loop.json").write_text(json.dumps(record))
    before = {path: path.read_bytes() for path in copied.rglob("*.md")}
    expected = ["README.md, figures", *(f"train_loop-{rule}.png" for rule in ("sgd", "adam", "adamw"))]
    assert run.older(copied, results) == expected
    assert {path: path.read_bytes() for path in copied.rglob("*.md")} == before
    assert run.older(copied, results, write=True) == expected
    assert "123,456" in (copied / "README.md").read_text()
    assert [path.name for path, text in before.items() if path.read_bytes() != text] == ["README.md"]
    assert run.older(copied, results) == []


def test_a_page_that_somebody_has_edited_is_older(copied: Path) -> None:
    page = copied / "docs/measurements.md"
    page.write_text(
        page.read_text().replace(
            "| skip a parameter without a gradient | ", "| skip a parameter without a gradient | 9"
        )
    )
    assert run.older(copied, copied / "results", write=True) == ["docs/measurements.md, host costs"]
    assert page.read_text() == (ROOT / "docs/measurements.md").read_text()


def test_sections_of_one_page_are_written_apart() -> None:
    page = "\n".join(("top", *run.marks("one"), "middle", *run.marks("two"), "end\n"))
    page = run.replaced(run.replaced(run.replaced(page, "one", ["first"]), "two", ["second"]), "one", ["third"])
    assert page.splitlines() == [
        "top", "<!-- one: begin -->", "third", "<!-- one: end -->", "middle",
        "<!-- two: begin -->", "second", "<!-- two: end -->", "end",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="three: begin"):
        run.replaced(page, "three", [])
