"""The README's examples run, and print what they say."""

import doctest
import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_doctests():
    result = doctest.testfile(str(README), module_relative=False)
    assert result.attempted > 10
    assert result.failed == 0


def test_first_example_runs():
    first = re.search(r"```python\n(import.*?)```", README.read_text(), re.DOTALL)
    assert first is not None
    exec(first.group(1), {})
