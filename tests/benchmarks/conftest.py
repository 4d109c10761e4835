"""The tests of the benchmarks are left out where a package that these need is missing."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if all(map(find_spec, ("matplotlib", "rich", "sklearn"))) else ["test_*.py"]
