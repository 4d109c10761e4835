"""A page for the tests of those benchmarks that write into one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def section_written(main: Callable[[Sequence[str]], Any], section: str, folder: Path, *arguments: str) -> str:
    """The page into which ``main`` has written a section, and nothing else."""
    page = folder / "page.md"
    page.write_text(f"before\n<!-- {section}: begin -->\n<!-- {section}: end -->\nafter\n")
    main([*arguments, "--into", str(page)])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    return text
