"""How long a package takes from `pip install` to the end of its first step, where torch is installed already.

Each gets an environment of its own on top of one that has nothing but the pinned torch; pip's cache and those of
compiled code start empty. Ours is built from a copy of this source tree, for the CPU alone.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import ROOT
from benchmarks.peers.arena import shortened
from benchmarks.peers.list import PEERS
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import OURS, RULES

MODEL = "tutorial-mlp"
TIMEOUT_S = 900
IN_BASE = ("torch", "numpy", "packaging")  # as nearly every environment has; optimi needs the last, undeclared
IGNORED = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "*.so", "__pycache__", ".*_cache", "*.egg-info"
)  # fmt: skip
# Takes a first step with an optimizer of any package, where only that package and torch are installed.
FIRST_STEP = """
import importlib, json, sys, torch
spec = json.loads(sys.argv[1])
params = [torch.nn.Parameter(torch.rand(shape)) for shape in spec["shapes"]]
for p in params:
    p.grad = torch.rand_like(p)
optimizer = getattr(importlib.import_module(spec["module"]), spec["name"])(params, lr=1e-3, **spec["arguments"])
(torch.compile(optimizer.step) if spec["compiled"] else optimizer.step)()
"""


def pinned(package: str) -> str:
    """A package with the version that `requirements-peers.txt` names, if it does."""
    lines = (ROOT / "requirements-peers.txt").read_text().splitlines()
    names = (line.partition("#")[0].strip() for line in lines)
    return next((name for name in names if name.partition("==")[0] == package), package)


def run(command: Sequence[str], folder: Path) -> float:
    """Runs a command with empty caches in `folder`: its seconds, or RuntimeError with the end of what it wrote."""
    fresh = {"TORCH_EXTENSIONS_DIR": str(folder / "extensions"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    settings = {"FUSEDOPTIM_CUDA": "0", "DS_ACCELERATOR": "cpu", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    path = f"{Path(command[0]).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **fresh, **settings, "PATH": path}
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        raise RuntimeError(shortened((done.stderr or done.stdout).strip().splitlines()[-1]))
    return time.perf_counter() - begin


@functools.cache
def base() -> tuple[tempfile.TemporaryDirectory[str], Path]:
    """The environment with torch, made once; the folder goes when the process ends."""
    folder = tempfile.TemporaryDirectory()
    home = Path(folder.name) / "base"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    run([str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", *map(pinned, IN_BASE)], Path(folder.name))
    return folder, home


def measure_setup(name: str, console: Console) -> dict[str, dict[str, Any]]:
    """Installs the package of a peer, takes a first step of the first rule that it has, and prints how long it took."""
    peer, (_, home) = PEERS[name], base()
    rule = next(rule for rule in ("adam", *RULES) if not peer.why_not(rule))
    spec: dict[str, Any] = {"module": peer.module, "name": peer.classes[rule], "arguments": peer.arguments[rule]}
    spec |= {"compiled": peer.compiled, "shapes": MODELS[MODEL].shapes}
    result: dict[str, Any] = {"optimizer": rule, "model": MODEL}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        python = str(folder / "env" / "bin" / "python")
        subprocess.run([home / "bin" / "python", "-m", "venv", "--without-pip", folder / "env"], check=True)
        below, here = (
            sysconfig.get_path("purelib", "venv", {"base": str(place), "platbase": str(place)})
            for place in (home, folder / "env")
        )
        (Path(here) / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n")
        try:
            package = str(shutil.copytree(ROOT, folder / "source", ignore=IGNORED)) if name == OURS else None
            install = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir", package or pinned(peer.package)]
            result["install_s"] = 0.0 if peer.package == "torch" else run(install, folder)
            result["first_step_s"] = run([python, "-c", FIRST_STEP, json.dumps(spec)], folder)
            said = f"install {result['install_s']:.1f} s, process with its first step {result['first_step_s']:.1f} s"
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            result["error"] = said = str(error)
    console.print(f"{name}: {said}", markup=False)
    return {name: result}
