"""Benchmarks: `python -m benchmarks` lists the questions they answer."""
