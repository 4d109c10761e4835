"""The chart of where the time of a training loop goes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.loop.tables import case_label
from benchmarks.shared.variants import OURS

COLORS = {
    "zero_grad": "#e9a23b",
    "forward": "#c3ccd6",
    "backward": "#8e9cab",
    "scaler": "#b2abd2",
    "clip": "#d6604d",
    "step": "#2166ac",
    "average": "#5aae61",
}
INK = "#333333"
COLUMNS = 3


def draw_panel(axes: Axes, result: Mapping[str, Any]) -> None:
    """One workload: a bar per variant, its phases stacked; at its end the time of the whole loop."""
    variants = result["variants"]
    names = list(variants)[::-1]
    phases = list(variants[names[0]]["phases"])
    totals = [sum(variants[name]["phases"][phase]["median"] for phase in phases) for name in names]
    left = [0.0] * len(names)
    for phase in phases:
        widths = [variants[name]["phases"][phase]["median"] for name in names]
        axes.barh(names, widths, left=left, color=COLORS[phase], label=phase, height=0.68)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for row, (name, total) in enumerate(zip(names, totals, strict=True)):
        loop = variants[name]["loop"]["median"]
        text = f" {loop:,.0f} µs"
        if name != OURS and OURS in variants:
            text += f"  ({variants[name]['loop_ratio']['median']:.2f} x)"
        axes.text(total, row, text, va="center", fontsize=8, color=INK)
    axes.set_xlim(0, 1.42 * max(totals))
    axes.set_title(case_label(result), loc="left", fontsize=10, fontweight="bold", color=INK)
    axes.set_xlabel("µs per iteration", fontsize=8, color=INK)
    axes.tick_params(labelsize=8, length=0, colors=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == OURS else "normal")


def finish(figure: Figure, title: str, caption: str, path: Path) -> None:
    """Puts the title above and the caption below, writes the PNG and closes the figure."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=7, color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160, facecolor="white")
    plt.close(figure)


def draw_loops(results: Sequence[Mapping[str, Any]], title: str, caption: str, path: Path) -> None:
    """Draws a panel per result into a PNG.

    Args:
        results: Results of `train_loop.py` for one optimizer.
        title: Stands above.
        caption: Stands below, small: the machine.
        path: Where to write.
    """
    columns = min(COLUMNS, len(results))
    rows = -(-len(results) // columns)
    bars = max(len(result["variants"]) for result in results)
    size = 4.6 * columns, (0.9 + 0.32 * bars) * rows + 0.9
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    panels = list(grid.flat)
    for axes, result in zip(panels, results, strict=False):
        draw_panel(axes, result)
    for axes in panels[len(results) :]:
        axes.set_axis_off()
    shown = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    legend = {phase: shown[phase] for phase in COLORS if phase in shown}
    figure.legend(legend.values(), legend, loc="outside upper right", ncols=len(legend), frameon=False, fontsize=9)
    finish(figure, title, caption, path)
