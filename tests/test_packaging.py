"""The package as users get it: source archive, wheel, installs with and without a compiler, `python -m fusedoptim`.

One fixture goes the whole way once: source archive, unpacked; from it the wheel; from that an environment that sees
the torch of this one. Nothing is downloaded.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch

import fusedoptim
from fusedoptim import build_info

ROOT = Path(__file__).parent.parent
pytest.importorskip("build", reason="building the package needs what requirements-dev.txt lists")
if not (ROOT / "setup.py").exists():
    pytest.skip("these tests build the package from its source tree", allow_module_level=True)

BUILD = [sys.executable, "-m", "build", "--no-isolation"]
ALLOWED_LIBRARIES = {"libgomp.so.1", "libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6"}
STEP = """
import torch, fusedoptim
p = torch.nn.Parameter(torch.ones(5))
p.grad = torch.ones(5)
fusedoptim.SGD([p], lr=0.5).step(zero_grad="to_zero")
assert p.tolist() == [0.5] * 5 and p.grad.tolist() == [0.0] * 5
print(fusedoptim.get_backend(), fusedoptim.__file__)
"""


def run(*command: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command away from the source tree, with its output at hand if it fails."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FUSEDOPTIM", "PYTHON"))}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**inherited, **env}, text=True, stdout=-1, stderr=-2, stdin=-3
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}"
    return done


def environment(folder: Path, wheel: Path) -> Path:
    """The Python of a new environment that holds the wheel and sees torch."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    # This environment's packages, below its own; without the .pth file of an editable fusedoptim.
    (site / "torch.pth").write_text(str(Path(torch.__file__).parent.parent))
    target = ["--target", site, "--no-deps", "--no-index", "--disable-pip-version-check", wheel]
    run(sys.executable, "-m", "pip", "install", *target, cwd=folder)
    return python


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, unpacked."""
    out = tmp_path_factory.mktemp("sdist")
    tree = out / "tree"  # a copy, since building leaves metadata in the tree
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).exists():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, tree / name)
    else:
        ignored = shutil.ignore_patterns(".venv", "build", "dist", "*.egg-info", "*.so", ".git", "__pycache__")
        shutil.copytree(ROOT, tree, ignore=ignored)
    run(*BUILD, "--sdist", "--outdir", out, cwd=tree)
    (archive,) = out.glob("fusedoptim-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(out, filter="data")
    return out / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """The wheel with the native module, built over the leavings of an isolated build whose tools are gone."""
    stale = sdist / "build" / f"temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    stale.mkdir(parents=True)
    gone = {"CMAKE_MAKE_PROGRAM:FILEPATH": "/gone/ninja", "CMAKE_HOME_DIRECTORY:INTERNAL": "/gone/fusedoptim"}
    (stale / "CMakeCache.txt").write_text("".join(f"{name}={value}\n" for name, value in gone.items()))
    left_over = sdist / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / "fusedoptim"
    left_over.mkdir(parents=True)
    (left_over / "removed_long_ago.py").touch()
    run(*BUILD, "--wheel", cwd=sdist, FUSEDOPTIM_NATIVE="1")
    assert (stale / "CMakeFiles").exists(), "setuptools builds elsewhere: this test proves nothing"
    (built,) = sdist.glob("dist/*.whl")
    return built


@pytest.fixture(scope="module")
def native_module(wheel: Path) -> Path:
    """The compiled module as it lies in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.startswith("fusedoptim/_C.") and name.endswith(".so"))
        return Path(archive.extract(name, wheel.parent))


@pytest.fixture
def no_compiler(tmp_path: Path) -> dict[str, str]:
    """Environment variables of a machine without a C++ compiler."""
    return {"CXX": str(tmp_path / "missing" / "g++")}


def names_in(wheel: Path) -> set[str]:
    """The files of a wheel outside its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def tool(name: str) -> str:
    """The path of a program of binutils, or a skipped test."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def test_source_archive_is_complete(sdist: Path) -> None:
    held = {str(path.relative_to(sdist)) for path in sdist.rglob("*") if path.is_file()}
    kept = ("csrc", "fusedoptim", "tests", "benchmarks", "docs")
    suffixes = {".py", ".pyi", ".typed", ".h", ".cpp", ".cu", ".cuh", ".md", ".toml"}
    tree = {str(path.relative_to(ROOT)) for top in kept for path in (ROOT / top).rglob("*") if path.suffix in suffixes}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        tree &= set(listed.stdout.split())
    top_level = {"CMakeLists.txt", "LICENSE", "Makefile", "pyproject.toml", "requirements-dev.txt", "setup.py"}
    assert tree | top_level <= held
    assert not [name for name in held if name.endswith((".so", ".pyc"))]


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = names_in(wheel)
    assert {"fusedoptim/py.typed", "fusedoptim/_C.pyi", "fusedoptim/__main__.py"} <= names
    assert all(name.startswith("fusedoptim/") for name in names)
    assert "fusedoptim/removed_long_ago.py" not in names
    assert len([name for name in names if name.endswith(".so")]) == 1
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{tag}-{tag}-" in wheel.name
    assert not wheel.name.endswith("-any.whl")


@pytest.mark.slow
def test_wheel_works_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "env", wheel)
    backend, where = run(python, "-W", "error", "-c", STEP, cwd=tmp_path).stdout.split()
    assert backend == "native"
    assert Path(where).is_relative_to(tmp_path)
    info = json.loads(run(python, "-m", "fusedoptim", "--json", cwd=tmp_path).stdout)
    assert info["native"] is True
    assert info["version"] == fusedoptim.build_info()["version"]


@pytest.mark.slow
def test_install_without_a_compiler(sdist: Path, no_compiler: dict[str, str], tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(sdist, tree, ignore=shutil.ignore_patterns("build", "dist", "*.egg-info"))
    log = run(*BUILD, "--wheel", cwd=tree, **no_compiler).stdout
    said = [line for line in log.splitlines() if line.startswith("fusedoptim: ")]
    assert len(said) == 1
    assert "reference path" in said[0]
    assert "compiler" in said[0]
    assert "install g++ or clang++" in said[0]

    (built,) = tree.glob("dist/*.whl")
    assert built.name.endswith("-py3-none-any.whl")  # it fits every machine, and says so
    assert not [name for name in names_in(built) if name.endswith(".so")]
    python = environment(tmp_path / "env", built)
    lines = run(python, "-W", "always", "-c", STEP, cwd=tmp_path).stdout.splitlines()
    assert lines[-1].split()[0] == "reference"
    warnings = [line for line in lines if "slow reference path" in line]
    assert len(warnings) == 1
    assert "compiler" in warnings[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wanted", "message"), [("1", "could not be built"), ("yes", "must be auto, 0 or 1, got 'yes'")]
)
def test_native_on_demand_fails_loudly(
    sdist: Path, no_compiler: dict[str, str], tmp_path: Path, wanted: str, message: str
) -> None:
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path / "lib", "--build-temp", tmp_path / "o"]
    with pytest.raises(AssertionError, match=message):
        run(*command, cwd=sdist, FUSEDOPTIM_NATIVE=wanted, **no_compiler)


@pytest.mark.slow
def test_links_nothing_but_the_language_runtime(native_module: Path) -> None:
    lines = run(tool("readelf"), "--dynamic", "--wide", native_module, cwd=native_module.parent).stdout.splitlines()
    needed = {line.split("[")[1].rstrip("]") for line in lines if "(NEEDED)" in line}
    assert {name for name in needed if not name.startswith("ld-linux")} <= ALLOWED_LIBRARIES
    assert not [line for line in lines if "(RPATH)" in line or "(RUNPATH)" in line]
    symbols = run(tool("nm"), "--dynamic", "--undefined-only", native_module, cwd=native_module.parent).stdout
    torchs = ("_ZN2at", "_ZNK2at", "_ZN3c10", "_ZNK3c10", "_ZN5torch", "_ZNK5torch", "THP")
    foreign = [symbol for symbol in symbols.split() if symbol.startswith(torchs)]
    assert foreign == []


@pytest.mark.slow
def test_each_instruction_set_keeps_to_its_namespace(sdist: Path, wheel: Path) -> None:
    """A function that several objects define is kept once by the linker, perhaps the copy for the largest processor."""
    objects = [*sdist.glob("build/temp*/CMakeFiles/kernels_*.dir/**/*.o")]
    assert objects
    for path in objects:
        name = next(part for part in path.parts if part.startswith("kernels_"))[len("kernels_") : -len(".dir")]
        listing = run(tool("nm"), "--demangle", "--defined-only", path, cwd=sdist).stdout
        symbols = [line.split(maxsplit=2)[1:] for line in listing.splitlines()]
        shared = [symbol for kind, symbol in symbols if kind not in "tdbr"]  # small letters: local to the object
        outside = [symbol for symbol in shared if f"fusedoptim::{name}::" not in symbol.split("(")[0]]
        assert outside == [f"fusedoptim::cpu::{name}()"], path
        assert len(shared) > 10


def test_worked_example_of_contributing_applies(tmp_path: Path) -> None:
    """Whoever changes what it touches mends it: `git apply --reject` shows where."""
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed")
    (diff,) = re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    for name in re.findall(r"^--- a/(.*)$", diff, re.MULTILINE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "adagrad.diff").write_text(diff)
    run(git, "apply", "--check", "-C1", "adagrad.diff", cwd=tmp_path, GIT_CEILING_DIRECTORIES=str(tmp_path.parent))


def test_command_line() -> None:
    info = build_info()
    command = [sys.executable, "-m", "fusedoptim"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    width = max(map(len, info))
    assert [line[: width + 2].rstrip().replace(" ", "_") for line in lines] == list(info)
    assert all(line[width : width + 2] == "  " and line[width + 2] != " " for line in lines)
    as_json = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout
    assert json.loads(as_json) == info | {"threads": json.loads(as_json)["threads"]}


def test_build_info() -> None:
    info = build_info()
    kinds = {
        "version": str, "torch": str, "python": str, "platform": str, "native": bool,
        "instruction_sets_built": list, "instruction_sets_supported": list,
        "cuda": bool, "cuda_architectures": list, "threads": int,
    }  # fmt: skip
    assert not [name for name, kind in kinds.items() if not isinstance(info[name], kind)]
    assert info["native"] == (info["native_error"] is None)
    if info["native"]:
        assert info["instruction_set"] == info["instruction_sets_supported"][0]
        assert set(info["instruction_sets_supported"]) <= set(info["instruction_sets_built"])
        assert info["instruction_sets_supported"][-1] == "baseline"
        assert info["compiler"]


def test_the_stub_matches_the_module() -> None:
    if not build_info()["native"]:
        pytest.skip("the native module is not built here")
    from fusedoptim import _C

    body = ast.parse((ROOT / "fusedoptim" / "_C.pyi").read_text()).body
    described = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    constants = [node.target for node in body if isinstance(node, ast.AnnAssign)]
    described |= {target.id for target in constants if isinstance(target, ast.Name)}
    assert described == {name for name in dir(_C) if not name.startswith("_")}
