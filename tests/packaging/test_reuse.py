"""An object is copied where the compiler would make the same, and nowhere else."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import reuse

FLAGS = ["-DFUSEDOPTIM_USED=1", "-DFUSEDOPTIM_UNUSED", "-DNDEBUG", "-isystem", "/gone/cuda", "-isystem", "/gone/python"]


def command(root: Path, flags: list[str]) -> list[str]:
    output = ["-MD", "-MT", "a.o", "-MF", f"{root}/a.o.d", "-o", f"{root}/a.o"]
    return ["c++", f"-I{root}/csrc", *flags, "-O3", *output, "-c", f"{root}/csrc/a.cpp"]


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    """The tree of the build in use, with an object of it, and a copy of its sources."""
    was, now = tmp_path / "was", tmp_path / "elsewhere" / "now"
    (was / "csrc").mkdir(parents=True)
    (was / "csrc" / "a.cpp").write_text('#include "a.h"\n')
    (was / "csrc" / "a.h").write_text("int a = FUSEDOPTIM_USED;\n")
    shutil.copytree(was, now)
    (was / "a.o").write_text("object")
    return was, now


def copied(was: Path, now: Path, flags: list[str], known: list[str] = FLAGS) -> bool:
    read = [f"{was}/csrc/a.cpp", f"{was}/csrc/a.h", __file__]
    listed = {"root": str(was), "objects": [reuse.Object(f"{was}/a.o", command(was, known), read)]}
    (now / "a.o").unlink(missing_ok=True)
    if reuse.reuse(command(now, flags), listed) is None:
        assert not (now / "a.o").exists()
        return False
    assert (now / "a.o").read_text() == "object"
    told = (now / "a.o.d").read_text().replace("\\\n", "").split()
    assert told == [f"{now}/a.o:", f"{now}/csrc/a.cpp", f"{now}/csrc/a.h", __file__]
    return True


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("-DNDEBUG", "-DNDEBUG", True),
        ("-DFUSEDOPTIM_UNUSED", "-DFUSEDOPTIM_OTHER", True),
        ("-DFUSEDOPTIM_USED=1", "-DFUSEDOPTIM_USED=2", False),
        ("-DFUSEDOPTIM_USED=1", "-DFUSEDOPTIM_UNUSED", False),
        ("-DNDEBUG", "-DOTHER", False),
        ("-DNDEBUG", "-O0", False),
        ("/gone/cuda", "/gone/other", False),
    ],
)
def test_flags(trees: tuple[Path, Path], old: str, new: str, same: bool) -> None:
    assert copied(*trees, [new if flag == old else flag for flag in FLAGS]) == same


def test_folders(trees: tuple[Path, Path]) -> None:
    """One that nothing came from is not missed; one more might have another file of the same name."""
    here = str(Path(__file__).parent)
    without, with_it = ["-DNDEBUG"], ["-DNDEBUG", "-isystem", here]
    assert copied(*trees, FLAGS[:3])
    assert not copied(*trees, without, known=with_it)
    assert not copied(*trees, with_it, known=without)


@pytest.mark.parametrize("name", ["a.cpp", "a.h"])
def test_texts(trees: tuple[Path, Path], name: str) -> None:
    was, now = trees
    (now / "csrc" / name).write_text("int b = FUSEDOPTIM_USED;\n")
    assert not copied(was, now, FLAGS)
    (now / "csrc" / name).unlink()
    with pytest.raises(FileNotFoundError):
        copied(was, now, FLAGS)


def test_a_source_that_was_changed_since(trees: tuple[Path, Path]) -> None:
    was, now = trees
    later = os.stat(was / "a.o").st_mtime + 1
    os.utime(was / "csrc" / "a.h", (later, later))
    assert not copied(was, now, FLAGS)


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_links_share_what_is_optimized_together(tmp_path: Path) -> None:
    """While it is the same, and only of the sources that all links have."""
    environment = {**os.environ, "PYTHONPATH": ""}
    shared, own = ("CMakeFiles/_C.dir/csrc/python/a.cpp.o", "CMakeFiles/_C.dir/csrc/cuda/b.cpp.o")
    source = tmp_path / "a.cpp"

    def linked(number: int) -> tuple[str, int]:
        texts = {shared: f"int a() {{ return {number}; }}", own: 'int a(); extern "C" int b() { return a(); }'}
        for name, text in texts.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            source.write_text(text)
            # By default the numbers in such an object are random.
            flags = ["-O2", "-fPIC", "-flto=auto", "-frandom-seed=1"]
            command = ["g++", *flags, "-c", source, "-o", tmp_path / name]
            subprocess.run(command, check=True)
        library = tmp_path / f"{number}.so"
        link = ["g++", "-shared", "-flto=auto", "-Wl,--trace", "-o", str(library), own, shared]
        command = [sys.executable, "-S", reuse.__file__, *link]
        done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
        words = done.stdout.split()
        assert own in words
        assert shared not in words
        (together,) = {word for word in words if word.endswith("/together.o")}
        return together, ctypes.CDLL(str(library)).b()

    (first, one), (second, two), (again, _) = linked(1), linked(2), linked(1)
    assert (one, two) == (1, 2)
    assert first == again != second
