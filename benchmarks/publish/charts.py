"""The charts: time of training loops by phase, growth of a step, steps of other packages."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.growth.arena import RESIDENT
from benchmarks.growth.breaks import time_of
from benchmarks.growth.tables import TITLES
from benchmarks.loop.run import case_label
from benchmarks.peers.list import PEERS
from benchmarks.shared.files import Record
from benchmarks.shared.report import machine_line
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import LIMIT, OURS, RULES

INK = "#333333"
PHASES = {
    "zero_grad": "#e9a23b",
    "forward": "#c3ccd6",
    "backward": "#8e9cab",
    "scaler": "#b2abd2",
    "clip": "#d6604d",
    "step": "#2166ac",
    "average": "#5aae61",
}
CURVES: Mapping[str, Mapping[str, Any]] = {
    "torch-default": {"color": "#8e9cab", "lw": 1.4},
    "torch-fused": {"color": "#e9a23b", "lw": 1.4},
    OURS: {"color": "#2166ac", "lw": 2.2},
    LIMIT: {"color": INK, "lw": 1.0, "ls": ":"},
}
PEER_MARKS = {"adam": ("o", "#2166ac", 0.22), "adamw": ("D", "#e9a23b", 0.0), "sgd": ("s", "#5a9e6f", -0.22)}


def finish(figure: Figure, legend: Mapping[str, Any], title: str, caption: str, path: Path, note: str) -> None:
    """Puts legend and title above and the caption below, writes the PNG with its note, and closes the figure."""
    figure.legend(legend.values(), legend, loc="outside upper right", ncols=len(legend), frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=7, color=INK)
    figure.savefig(path, dpi=160, facecolor="white", metadata={"Comment": note})
    plt.close(figure)


def style(axes: Axes, title: str, hidden: tuple[str, ...] = ("top", "right", "left")) -> None:
    """What all panels share."""
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK)
    axes.tick_params(labelsize=8, length=0, colors=INK, which="both")
    axes.spines[list(hidden)].set_visible(False)


def handles_of(figure: Figure) -> dict[str, Any]:
    """What a legend names, over all panels."""
    pairs = (pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True))
    return {name: handle for handle, name in pairs}


def draw_loop(axes: Axes, result: Record) -> None:
    """One workload: a bar per variant, its phases stacked; at its end the time of the whole loop."""
    variants = result["variants"]
    names = list(variants)[::-1]
    left = [0.0] * len(names)
    for phase in variants[names[0]]["phases"]:
        widths = [variants[name]["phases"][phase]["median"] for name in names]
        axes.barh(names, widths, left=left, color=PHASES[phase], label=phase, height=0.68)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for row, (name, total) in enumerate(zip(names, left, strict=True)):
        text = f" {variants[name]['loop']['median']:,.0f} µs"
        if name != OURS and OURS in variants:
            text += f"  ({variants[name]['loop_ratio']['median']:.2f} x)"
        axes.text(total, row, text, va="center", fontsize=8, color=INK)
    axes.set_xlim(0, 1.42 * max(left))
    axes.set_xlabel("µs per iteration", fontsize=8, color=INK)
    style(axes, case_label(result))
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == OURS else "normal")


def loops(rule: str) -> Callable[[Record, Path, str], None]:
    """Draws the loops of one optimizer, a panel per workload."""

    def draw(record: Record, path: Path, note: str) -> None:
        results = [result for result in record["results"] if result["optimizer"] == rule]
        columns = min(3, len(results))
        rows = -(-len(results) // columns)
        bars = max(len(result["variants"]) for result in results)
        size = 4.6 * columns, (0.9 + 0.32 * bars) * rows + 0.9
        figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        for axes, result in zip(grid.flat, results, strict=False):
            draw_loop(axes, result)
        for axes in list(grid.flat)[len(results) :]:
            axes.set_axis_off()
        shown = handles_of(figure)
        title = f"{RULES[rule].class_name}: time of one training iteration (and its ratio to ours)"
        legend = {phase: shown[phase] for phase in PHASES if phase in shown}
        finish(figure, legend, title, machine_line(record["machine"]), path, note)

    return draw


def draw_curve(axes: Axes, record: Record, axis: str, name: str) -> None:
    """The medians, the quartiles around them, and a mark on each break point."""
    results = [result for result in record["axes"][axis] if name in result["variants"]]
    look, times = CURVES[name], [time_of(result, name) for result in results]
    sizes, medians = [result["size"] for result in results], [time["median"] for time in times]
    axes.plot(sizes, medians, label=name, zorder=3 if name == OURS else 2, **look)
    low, high = ([time[key] for time in times] for key in ("low", "high"))
    axes.fill_between(sizes, low, high, alpha=0.2, lw=0, color=look["color"])
    ends = {piece["last"] for piece in record["breaks"].get(axis, {}).get(name, {}).get("pieces", [])[:-1]}
    marks = [(size, median) for size, median in zip(sizes, medians, strict=True) if size in ends]
    axes.plot(*zip(*marks, strict=True) if marks else ([], []), "o", color=look["color"], ms=4, zorder=4)


def growth(record: Record, path: Path, note: str) -> None:
    """Draws a panel for each thing that grows; lines where what a step touches outgrows each cache."""
    names = [name for name, results in record["axes"].items() if results]
    figure, panels = plt.subplots(1, len(names), figsize=(5.6 * len(names), 4.8), squeeze=False, layout="constrained")
    for axes, axis in zip(panels.flat, names, strict=True):
        axes.set(xscale="log", yscale="log")
        for name in record["axes"][axis][0]["variants"]:
            draw_curve(axes, record, axis, name)
        axes.axhline(record["empty_call"]["median"], color=INK, lw=0.8, ls="--", alpha=0.6, label="an empty call")
        for name, cache in record["caches"].items() if axis == "elements" else ():
            size = cache["bytes"] * (1 if cache["shared"] else record["settings"]["threads"]) / RESIDENT
            axes.axvline(size, color=INK, lw=0.5, alpha=0.4)
            axes.text(size, 0.99, f" {name}", transform=axes.get_xaxis_transform(), va="top", fontsize=7, color=INK)
        axes.set_ylabel("µs a step", fontsize=8, color=INK)
        axes.grid(color=INK, alpha=0.08)
        style(axes, TITLES[axis], ("top", "right"))
    caption = f"{machine_line(record['machine'])}; dots: break points"
    finish(figure, handles_of(figure), "Time of a step of Adam", caption, path, note)


def draw_peers(axes: Axes, results: Record, names: list[str]) -> None:
    """One model: how many times our time each peer takes, on a logarithmic axis; quartiles as a line."""
    axes.set_xscale("log")
    for rule, (mark, color, offset) in PEER_MARKS.items():
        variants = results.get(rule, {}).get("variants", {})
        rows = [row for row, name in enumerate(names) if name in variants]
        spreads = [variants[names[row]]["ratio"] for row in rows]
        places = [row + offset for row in rows]
        axes.hlines(places, [s["low"] for s in spreads], [s["high"] for s in spreads], color=color, lw=1)
        axes.plot([s["median"] for s in spreads], places, mark, color=color, ms=4, label=RULES[rule].class_name)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g} x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_xlim()
    axes.axvspan(min(low, 0.5), 1, color="#f3dcd3", zorder=0, lw=0)
    axes.set_xlim(min(low, 0.5), high)
    axes.axvline(1, color=INK, lw=0.8)
    axes.grid(axis="x", color="#e5e8ec", lw=0.6)
    axes.set_axisbelow(True)


def peers(record: Record, path: Path, note: str) -> None:
    """Draws a panel per model."""
    by_model: dict[str, dict[str, Any]] = {}
    for result in record["results"]:
        by_model.setdefault(result["model"], {})[result["optimizer"]] = result
    models = [model for model in MODELS if model in by_model]
    measured = {name for result in record["results"] for name in result["variants"]}
    names = [name for name in PEERS if name in measured and name != OURS][::-1]
    size = 3.1 * len(models) + 1.4, 0.34 * len(names) + 1.5
    figure, panels = plt.subplots(1, len(models), figsize=size, squeeze=False, sharey=True, layout="constrained")
    for axes, model in zip(panels.flat, models, strict=True):
        draw_peers(axes, by_model[model], names)
        style(axes, model)
        axes.set_xlabel("times the step of fusedoptim", fontsize=8, color=INK)
        axes.set_yticks(range(len(names)), names)
    caption = f"{machine_line(record['results'][-1]['machine'])}. Lines: quartiles. Shaded: faster than fusedoptim."
    finish(figure, handles_of(figure), "Time of a step, as a multiple of fusedoptim's", caption, path, note)
