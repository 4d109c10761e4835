"""The way in to the benchmarks, and which of their folders may import which."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from benchmarks import ROOT
from benchmarks.__main__ import QUESTIONS, main, path_of, summary

FOLDER = ROOT / "benchmarks"


def imported_folders(path: Path) -> set[str]:
    """The folders of the benchmarks that a module imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {parts[1] for name in names if name and (parts := name.split("."))[0] == "benchmarks" and parts[1:]}
    return found & {path.name for path in FOLDER.iterdir()}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*/*.py")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_folders_import_themselves_and_what_is_shared(path: Path) -> None:
    allowed = {path.parent.name, "shared"} if path.parent.name != "publish" else set(map(str, QUESTIONS)) | {"shared"}
    assert imported_folders(path) <= allowed


def test_every_question_is_listed_with_what_its_module_asks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    for name in QUESTIONS:
        assert re.search(rf"^{name} +{re.escape(summary(name))}$", listed, re.MULTILINE)
        assert "?" in summary(name)
    runs = set(FOLDER.glob("*/run.py"))
    assert runs <= {path_of(name) for name in QUESTIONS}


@pytest.mark.parametrize("name", [name for name in QUESTIONS if name != "bench-step"])
def test_help_says_question_method_and_output(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    said = capsys.readouterr().out
    assert said.startswith(f"usage: python -m benchmarks {name} ")
    assert summary(name) in said
    assert "\nOutput: " in said


def test_another_question_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weather"]) == 2
    assert "no question 'weather'; there are loop, " in capsys.readouterr().err
