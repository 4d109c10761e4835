"""The chart of the time of each peer's step beside ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.peers.list import PEERS
from benchmarks.shared.chart import INK, finish
from benchmarks.shared.report import machine_line
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import OURS, RULES

MARKS = {"adam": ("o", "#2166ac"), "adamw": ("D", "#e9a23b"), "sgd": ("s", "#5a9e6f")}
OFFSETS = {"adam": 0.22, "adamw": 0.0, "sgd": -0.22}
FASTER = "#f3dcd3"


def draw_panel(axes: Axes, results: Mapping[str, Mapping[str, Any]], names: list[str]) -> None:
    """One model: how many times our time each peer takes, on a logarithmic axis; quartiles as a line."""
    axes.set_xscale("log")
    for rule, (mark, color) in MARKS.items():
        variants = results.get(rule, {}).get("variants", {})
        rows = [row for row, name in enumerate(names) if name in variants]
        spreads = [variants[names[row]]["ratio"] for row in rows]
        places = [row + OFFSETS[rule] for row in rows]
        axes.hlines(places, [s["low"] for s in spreads], [s["high"] for s in spreads], color=color, lw=1)
        medians = [s["median"] for s in spreads]
        axes.plot(medians, places, mark, color=color, ms=4, label=RULES[rule].class_name)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g} x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_xlim()
    axes.axvspan(min(low, 0.5), 1, color=FASTER, zorder=0, lw=0)
    axes.set_xlim(min(low, 0.5), high)
    axes.axvline(1, color=INK, lw=0.8)
    axes.grid(axis="x", color="#e5e8ec", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, length=0, colors=INK, which="both")
    axes.spines[["top", "right", "left"]].set_visible(False)


def draw_peers(record: Mapping[str, Any], path: Path) -> None:
    """Draws a panel per model into a PNG.

    Args:
        record: What `peers.py` writes.
        path: Where to write.
    """
    by_model: dict[str, dict[str, Any]] = {}
    for result in record["results"]:
        by_model.setdefault(result["model"], {})[result["optimizer"]] = result
    models = [model for model in MODELS if model in by_model]
    measured = {name for result in record["results"] for name in result["variants"]}
    names = [name for name in PEERS if name in measured and name != OURS][::-1]
    size = 3.1 * len(models) + 1.4, 0.34 * len(names) + 1.5
    figure, panels = plt.subplots(1, len(models), figsize=size, squeeze=False, sharey=True, layout="constrained")
    for axes, model in zip(panels.flat, models, strict=True):
        draw_panel(axes, by_model[model], names)
        axes.set_title(model, loc="left", fontsize=10, fontweight="bold", color=INK)
        axes.set_xlabel("times the step of fusedoptim", fontsize=8, color=INK)
        axes.set_yticks(range(len(names)), names)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(MARKS), frameon=False, fontsize=9)
    caption = f"{machine_line(record['results'][-1]['machine'])}. Lines: quartiles. Shaded: faster than fusedoptim."
    finish(figure, "Time of a step, as a multiple of fusedoptim's", caption, path)
