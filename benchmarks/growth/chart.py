"""The figure of how the cost of a step grows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.growth.arena import RESIDENT, TENSOR
from benchmarks.growth.time import time_of
from benchmarks.shared.chart import INK
from benchmarks.shared.variants import OURS
from benchmarks.step.run import LIMIT

STYLES: Mapping[str, Mapping[str, Any]] = {
    "torch-default": {"color": "#8e9cab", "lw": 1.4},
    "torch-fused": {"color": "#e9a23b", "lw": 1.4},
    OURS: {"color": "#2166ac", "lw": 2.2},
    LIMIT: {"color": INK, "lw": 1.0, "ls": ":"},
}
TITLES = {"tensors": f"tensors of {TENSOR} elements", "elements": "elements in one tensor"}


def draw_curve(axes: Axes, record: Mapping[str, Any], axis: str, name: str) -> None:
    """The medians, the quartiles around them, and a mark on each break point."""
    results = [result for result in record["axes"][axis] if name in result["variants"]]
    style, times = STYLES[name], [time_of(result, name) for result in results]
    sizes, medians = [result["size"] for result in results], [time.median for time in times]
    axes.plot(sizes, medians, label=name, zorder=3 if name == OURS else 2, **style)
    axes.fill_between(sizes, [time.low for time in times], [time.high for time in times], alpha=0.2, lw=0,
                      color=style["color"])  # fmt: skip
    ends = {piece["last"] for piece in record["breaks"].get(axis, {}).get(name, {}).get("pieces", [])[:-1]}
    marks = [(size, median) for size, median in zip(sizes, medians, strict=True) if size in ends]
    axes.plot(*zip(*marks, strict=True) if marks else ([], []), "o", color=style["color"], ms=4, zorder=4)


def draw_caches(axes: Axes, record: Mapping[str, Any]) -> None:
    """Where what a step touches outgrows each cache."""
    for name, cache in record["caches"].items():
        size = cache["bytes"] * (1 if cache["shared"] else record["settings"]["threads"]) / RESIDENT
        axes.axvline(size, color=INK, lw=0.5, alpha=0.4)
        axes.text(size, 0.99, f" {name}", transform=axes.get_xaxis_transform(), va="top", fontsize=7, color=INK)


def draw_growth(record: Mapping[str, Any], caption: str, path: Path) -> None:
    """Draws a panel for each thing that grows.

    Args:
        record: Of `growth.py`, with its break points.
        caption: Stands below, small: the machine.
        path: Where to write a PNG.
    """
    names = [name for name, results in record["axes"].items() if results]
    figure, panels = plt.subplots(1, len(names), figsize=(5.6 * len(names), 4.8), squeeze=False, layout="constrained")
    for axes, axis in zip(panels.flat, names, strict=True):
        axes.set(xscale="log", yscale="log")
        for name in record["axes"][axis][0]["variants"]:
            draw_curve(axes, record, axis, name)
        axes.axhline(record["empty_call"]["median"], color=INK, lw=0.8, ls="--", alpha=0.6, label="an empty call")
        if axis == "elements":
            draw_caches(axes, record)
        axes.set_title(TITLES[axis], loc="left", fontsize=10, fontweight="bold", color=INK)
        axes.set_ylabel("µs a step", fontsize=8, color=INK)
        axes.tick_params(labelsize=8, colors=INK)
        axes.grid(color=INK, alpha=0.08)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False, fontsize=8)
    figure.suptitle("Time of a step of Adam", x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    figure.supxlabel(f"{caption}; dots: break points", x=0.01, ha="left", fontsize=7, color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160, facecolor="white")
    plt.close(figure)
