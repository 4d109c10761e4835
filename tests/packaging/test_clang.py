"""Clang takes the sources without a warning: the oldest and the newest version that are installed here."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOUND = sorted(
    {
        path.name
        for folder in os.environ["PATH"].split(os.pathsep)
        for path in Path(folder).glob("clang++*")
        if re.fullmatch(r"clang\+\+(-\d+)?", path.name)
    },
    key=lambda name: int(re.sub(r"\D", "", name) or 0),
)
NONE = pytest.param("", marks=pytest.mark.skip(reason="no clang is installed"))


@pytest.mark.slow
@pytest.mark.parametrize("clang", sorted({*FOUND[:1], *FOUND[-1:]}) or [NONE])
def test_clang_says_nothing(clang: str, tmp_path: Path) -> None:
    cmake = pytest.importorskip("cmake").CMAKE_BIN_DIR
    pybind11 = pytest.importorskip("pybind11").get_cmake_dir()
    configure = [
        Path(cmake) / "cmake", "-S", ROOT, "-B", tmp_path, f"-DCMAKE_CXX_COMPILER={clang}",
        "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}",
    ]  # fmt: skip
    subprocess.run(configure, check=True, capture_output=True)
    entries = json.loads((tmp_path / "compile_commands.json").read_text())
    assert {Path(entry["file"]).name for entry in entries} >= {"kernels.cpp", "instruction_set.cpp", "module.cpp"}
    commands = [shlex.split(entry["command"]) for entry in entries]
    # Most of the time would go to pybind11's headers. They are not what is looked at here, so they are read once.
    header = tmp_path / "pybind11.h"
    header.write_text("#include <pybind11/pybind11.h>\n")
    bindings = next(command for command in commands if command[-1].endswith("/csrc/python/module.cpp"))
    compiled = [*bindings[: bindings.index("-o")], "-Xclang", "-fpch-instantiate-templates", "-x", "c++-header", header]
    subprocess.run([*compiled, "-o", header.with_suffix(".pch")], check=True, capture_output=True)
    for entry, command in zip(entries, commands, strict=True):
        read = ["-include-pch", header.with_suffix(".pch")] if "/csrc/python/" in command[-1] else []
        command += ["-Werror", "-fsyntax-only", *map(str, read)]
        done = subprocess.run(command, cwd=entry["directory"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
