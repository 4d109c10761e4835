"""The charts: time of training loops by phase."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.loop.run import case_label
from benchmarks.shared.files import Record
from benchmarks.shared.report import machine_line
from benchmarks.shared.variants import OURS, RULES

INK = "#333333"
GRAY, YELLOW, BLUE = "#8e9cab", "#e9a23b", "#2166ac"
PHASES = {
    "zero_grad": YELLOW, "forward": "#c3ccd6", "backward": GRAY, "scaler": "#b2abd2", "clip": "#d6604d",
    "step": BLUE, "average": "#5aae61",
}  # fmt: skip
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


@matplotlib.rc_context(STYLE)
def quality(record: Record, path: Path, note: str) -> None:
    """One panel a training: the loss of each storage beyond float32's of the same seed, with its deviation."""
    results = record["results"]
    figure, panels = plt.subplots(1, len(results), figsize=(4 * len(results), 3.4), squeeze=False, sharey=True)
    for axes, result in zip(panels[0], results, strict=True):
        names = list(result["variants"])[:0:-1]  # float32 itself comes first
        found = [result["variants"][name]["difference"] for name in names]
        spread = {"xerr": [x["deviation"] for x in found], "label": "mean and deviation"}
        axes.errorbar([x["mean"] for x in found], names, fmt="o", color=BLUE, ms=4, **spread)
        axes.axvline(0, color=GRAY, lw=1)
        axes.set_title(result["task"])
        axes.locator_params(axis="x", nbins=5)
    finish(figure, "Loss beyond float32", machine_line(record["machine"]), path, note)
