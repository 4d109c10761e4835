"""Benchmarks: `python -m benchmarks` lists the questions they answer."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
