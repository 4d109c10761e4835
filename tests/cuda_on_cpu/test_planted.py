"""The tests of the CUDA code notice the mistakes of planted.py, and nothing in the sources as they are.

To plant all takes a quarter of an hour. Where it was done with the very sources that are here, which planted.py keeps a
fingerprint of, it is not done again but by `make test-planted`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import building
import pytest
import stand_in_module
from planted import PLANTED, Planted, are_noticed

WHY_NOT = building.why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@dataclass(frozen=True)
class Mode:
    """How sources are built and run."""

    layer: str
    storage: str
    sanitizer: str

    @classmethod
    def of(cls, planted: Planted) -> Mode:
        return cls(planted.layer, planted.storage, planted.sanitizer)


def run_source_level(csrc: Path, mode: Mode, _: Planted | None) -> subprocess.CompletedProcess[str]:
    arithmetic = "f64" if mode.storage == "f64" else "f32"
    program = building.source_level(mode.sanitizer, (arithmetic,), csrc, "-O0", building.FEW_RULES)
    return building.run_source_level(program, mode.sanitizer, "--storage", mode.storage)


def run_end_to_end(csrc: Path, _: Mode, planted: Planted | None) -> subprocess.CompletedProcess[str]:
    host = building.compile_objects(stand_in_module.host_objects(csrc))
    with tempfile.TemporaryDirectory() as out:
        module = stand_in_module.link(stand_in_module.objects(), Path(out), host)
        chosen = () if planted is None else ("-k", planted.seen)
        tests = "device_tests" if planted is None else planted.tests
        return stand_in_module.run_posed(module, f"tests/cuda_on_cpu/{tests}.py", *chosen)


# By layer. Each builds the sources and runs them, and says in its output what it has noticed.
RUNNERS: dict[str, Callable[[Path, Mode, Planted | None], subprocess.CompletedProcess[str]]] = {
    "source": run_source_level,
    "end to end": run_end_to_end,
}
WHY_NOT_IN = {"source": building.why_not, "end to end": stand_in_module.why_not}

MODES = sorted({Mode.of(planted) for planted in PLANTED}, key=str)
planting = pytest.mark.skipif(
    os.environ.get("FUSEDOPTIM_PLANTED") != "all" and are_noticed(), reason="noticed in these very sources"
)


def plant(planted: Planted, csrc: Path) -> None:
    """Write a copy of the sources with the mistake."""
    shutil.copytree(building.CSRC, csrc)
    file = csrc / planted.file
    file.write_text(with_mistake(planted, file.read_text()))


def with_mistake(planted: Planted, text: str) -> str:
    found = text.count(planted.old)
    assert found == 1, f"{planted.file} has changed: {planted.old!r} occurs {found}x"
    return text.replace(planted.old, planted.new)


def test_each_has_its_place():
    for planted in PLANTED:
        with_mistake(planted, (building.CSRC / planted.file).read_text())


def skip_without_means(layer: str) -> None:
    why_not = WHY_NOT_IN[layer]()
    if why_not is not None:
        pytest.skip(why_not)


def run_planted(planted: Planted, csrc: Path) -> subprocess.CompletedProcess[str]:
    plant(planted, csrc)
    return RUNNERS[planted.layer](csrc, Mode.of(planted), planted)


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Planted, Future[subprocess.CompletedProcess[str]]]]:
    """What becomes of the mistakes whose tests are selected: a few at a time, as building them is most of the time."""
    selected = [
        item.callspec.params["planted"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.function is test_is_noticed
    ]
    selected = [planted for planted in selected if WHY_NOT_IN[planted.layer]() is None]
    folder = tmp_path_factory.mktemp("planted")
    # What does not change from one to the other comes first, so that it is built once.
    building.compile_objects([*building.cpu_driver(), *(building.runtime(mode.sanitizer) for mode in MODES)])
    with ThreadPoolExecutor(building.JOBS) as pool:
        yield {planted: pool.submit(run_planted, planted, folder / str(i)) for i, planted in enumerate(selected)}


@planting
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode.layer}-{mode.storage}-{mode.sanitizer}")
def test_nothing_is_noticed_where_nothing_is_planted(mode):
    skip_without_means(mode.layer)
    done = RUNNERS[mode.layer](building.CSRC, mode, None)
    assert done.returncode == 0, done.stdout[:6000]


@planting
@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: f"{planted.layer}-{planted.name.replace(' ', '-')}")
def test_is_noticed(planted, outcomes):
    skip_without_means(planted.layer)
    done = outcomes[planted].result()
    assert done.returncode != 0, f"not noticed: {done.stdout[:6000]}"
    assert planted.seen in done.stdout, done.stdout[:6000]
    assert "error" not in done.stdout.splitlines()[-1], "no test ran"
