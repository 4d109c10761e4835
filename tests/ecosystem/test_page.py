"""The examples of docs/trainers.md run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lit import loader
from test_transformers import Passages, gpt2
from training import assert_equal_bits, cnn, copies

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
assert len(EXAMPLES) == 5


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example_trains(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"model": cnn(), "language_model": gpt2(), "loader": loader(), "dataset": Passages()}
    trained = given["language_model" if "language_model" in example else "model"]
    before = copies(trained)
    exec(compile(example, PAGE.name, "exec"), given)
    with pytest.raises(AssertionError):
        assert_equal_bits(copies(trained), before)
