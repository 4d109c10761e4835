"""One way in: `python -m benchmarks` lists the questions, and `python -m benchmarks QUESTION` answers one."""

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

QUESTIONS = {
    "loop": "loop.run",
    "tail": "loop.tail",
    "step": "step.run",
    "bench-step": "step.bench_step",
    "host-costs": "step.host_costs",
    "kernel-costs": "step.kernel_costs",
    "cliffs": "step.cliffs",
    "in-backward": "step.in_backward",
    "limits": "limits.run",
    "growth": "growth.run",
    "busy": "busy.run",
    "memory": "memory.run",
    "storage": "storage.run",
    "quality": "storage.quality",
    "peers": "peers.run",
    "gate": "gate.run",
    "gpu": "gpu.run",
    "publish": "publish.run",
}


def path_of(name: str) -> Path:
    return Path(__file__).parent / f"{QUESTIONS[name].replace('.', '/')}.py"


def summary(name: str) -> str:
    """The question, as its module puts it: nothing is imported for it."""
    return (ast.get_docstring(ast.parse(path_of(name).read_text())) or "").partition("\n")[0]


def main(arguments: Sequence[str] | None = None) -> int:
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print("python -m benchmarks QUESTION [--help]\n")
        print(*(f"{name:14}{summary(name)}" for name in QUESTIONS), sep="\n")
        return 0
    if name not in QUESTIONS:
        print(f"benchmarks: no question {name!r}; there are {', '.join(QUESTIONS)}", file=sys.stderr)
        return 2
    sys.argv[0] = f"python -m benchmarks {name}"  # as --help says it
    if name == "bench-step":
        module = importlib.import_module(f"benchmarks.{QUESTIONS[name]}")
        return int(importlib.import_module("pytest").main([str(path_of(name)), *rest], plugins=[module]))
    return int(importlib.import_module(f"benchmarks.{QUESTIONS[name]}").main(rest))


if __name__ == "__main__":
    raise SystemExit(main())
