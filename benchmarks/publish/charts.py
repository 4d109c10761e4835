"""The charts: time of training loops by phase, steps of other packages."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.loop.run import case_label
from benchmarks.peers.list import PEERS
from benchmarks.shared.files import Record
from benchmarks.shared.report import machine_line
from benchmarks.shared.shapes import MODELS
from benchmarks.shared.variants import OURS, RULES

INK = "#333333"
GRAY, YELLOW, BLUE = "#8e9cab", "#e9a23b", "#2166ac"
PHASES = {
    "zero_grad": YELLOW, "forward": "#c3ccd6", "backward": GRAY, "scaler": "#b2abd2", "clip": "#d6604d",
    "step": BLUE, "average": "#5aae61",
}  # fmt: skip
PEER_MARKS = {"adam": ("o", BLUE, 0.22), "adamw": ("D", YELLOW, 0.0), "sgd": ("s", "#5a9e6f", -0.22)}
STYLE: Any = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.labelsize", "xtick.labelsize", "ytick.labelsize"), 8),
    **dict.fromkeys((f"{x}tick.{kind}.size" for x in "xy" for kind in ("major", "minor")), 0),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "axes.titlelocation": "left", "axes.titlesize": 10, "axes.titleweight": "bold", "legend.fontsize": 9,
    "figure.constrained_layout.use": True,
}  # fmt: skip


def finish(figure: Figure, title: str, caption: str, path: Path, note: str, order: Iterable[str] = ()) -> None:
    """Puts legend and title above and the caption below, writes the PNG with its note, and closes the figure."""
    pairs = (pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True))
    found = {name: handle for handle, name in pairs}
    names = [name for name in order if name in found] or list(found)
    figure.legend([found[name] for name in names], names, loc="outside upper right", ncols=len(names))
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=7)
    figure.savefig(path, dpi=160, facecolor="white", metadata={"Comment": note})
    plt.close(figure)


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
        axes.text(total, row, text, va="center", fontsize=8)
    axes.set(xlim=(0, 1.42 * max(left)), xlabel="µs per iteration", title=case_label(result))
    axes.spines.left.set_visible(False)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == OURS else "normal")


@matplotlib.rc_context(STYLE)
def loops(rule: str, record: Record, path: Path, note: str) -> None:
    results = [result for result in record["results"] if result["optimizer"] == rule]
    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    bars = max(len(result["variants"]) for result in results)
    figure, grid = plt.subplots(rows, columns, figsize=(4.6 * columns, (0.9 + 0.32 * bars) * rows + 0.9), squeeze=False)
    for axes, result in zip(grid.flat, results, strict=False):
        draw_loop(axes, result)
    for axes in list(grid.flat)[len(results) :]:
        axes.set_axis_off()
    title = f"{RULES[rule].class_name}: time of one training iteration (and its ratio to ours)"
    finish(figure, title, machine_line(record["machine"]), path, note, PHASES)


def draw_peers(axes: Axes, results: Record, names: list[str]) -> None:
    """One model: how many times our time each peer takes, on a logarithmic axis; quartiles as a line."""
    axes.set_xscale("log")
    for rule, (mark, color, offset) in PEER_MARKS.items():
        variants = results.get(rule, {}).get("variants", {})
        found = [(row + offset, variants[name]["ratio"]) for row, name in enumerate(names) if name in variants]
        places = [place for place, _ in found]
        low, medians, high = ([ratio[key] for _, ratio in found] for key in ("low", "median", "high"))
        axes.hlines(places, low, high, color=color, lw=1)
        axes.plot(medians, places, mark, color=color, ms=4, label=RULES[rule].class_name)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g} x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    left, right = axes.get_xlim()
    axes.axvspan(min(left, 0.5), 1, color="#f3dcd3", zorder=0, lw=0)
    axes.axvline(1, color=INK, lw=0.8)
    axes.set(xlim=(min(left, 0.5), right), xlabel="times the step of fusedoptim")
    axes.grid(axis="x", color="#e5e8ec", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines.left.set_visible(False)


@matplotlib.rc_context(STYLE)
def peers(record: Record, path: Path, note: str) -> None:
    by_model: dict[str, dict[str, Any]] = {}
    for result in record["results"]:
        by_model.setdefault(result["model"], {})[result["optimizer"]] = result
    models = [model for model in MODELS if model in by_model]
    measured = {name for result in record["results"] for name in result["variants"]}
    names = [name for name in PEERS if name in measured and name != OURS][::-1]
    size = 3.1 * len(models) + 1.4, 0.34 * len(names) + 1.5
    figure, panels = plt.subplots(1, len(models), figsize=size, squeeze=False, sharey=True)
    for axes, model in zip(panels.flat, models, strict=True):
        draw_peers(axes, by_model[model], names)
        axes.set_title(model)
        axes.set_yticks(range(len(names)), names)
    caption = f"{machine_line(record['results'][-1]['machine'])}. Lines: quartiles. Shaded: faster than fusedoptim."
    finish(figure, "Time of a step, as a multiple of fusedoptim's", caption, path, note)
