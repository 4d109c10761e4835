"""A quick run of a benchmark leaves the published results as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.shared import options

ROOT = Path(__file__).resolve().parent.parent.parent
PUBLISHED = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize("before", [[], ["--rounds", "3"]])
def test_where_results_go_by_default(before: list[str]) -> None:
    parser = options.Parser("", rounds=(7, 2))
    full, quick = parser.parse(before), parser.parse([*before, "--quick"])
    assert (full.rounds, quick.rounds) == ((3, 3) if before else (7, 2))
    assert (full.quick, full.output) == (False, PUBLISHED)
    assert quick.quick is True
    assert quick.output.relative_to(ROOT).parts[0] + "/" in (ROOT / ".gitignore").read_text().split()


@pytest.mark.parametrize("folder", ["elsewhere", str(PUBLISHED)])
def test_a_folder_that_is_named_is_used(folder: str) -> None:
    for line in (["--quick", "--output", folder], ["--output", folder, "--quick"], ["--output", folder]):
        assert options.Parser("").parse(line).output == Path(folder)


def test_every_run_says_where_its_results_go(capsys: pytest.CaptureFixture[str]) -> None:
    options.begin(options.Parser("").parse(["--quick"]))
    assert "results go to build/bench\n" in capsys.readouterr().out
