"""A picture of the accuracy table: accuracy over FLOPs, a line per way to prune without training, a panel per task."""

from __future__ import annotations

import itertools
from pathlib import Path
from statistics import fmean

from accuracy_cells import FLOPS
from accuracy_modes import MODES
from accuracy_results import AccuracyResults
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tasks import TASKS

# The paper's, what its scores are with the refit, and the ways that count on the refit.
_COLOURS = ("#c0392b", "#9aa5ae", "#c9b458", "#7fb069", "#0b3157", "#3d83ba", "#8e6bb0")
# Points below the dense model that are shown; what is worse is out of the picture.
_SHOWN = 12


def plot_accuracy(results: AccuracyResults, path: Path) -> None:
    """Draws every way's mean accuracy as a line, and a dot for each calibration sample."""
    figure = Figure(figsize=(5.6 * len(results.tasks), 5), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(results.tasks), squeeze=False)[0]
    for axes, task in zip(panels, results.tasks, strict=True):
        dense = results.dense(task)[0]
        axes.axhline(dense, color="#22303c", linewidth=1, label="dense")
        axes.axhline(dense - 1, color="#22303c", linewidth=1, linestyle=":", label="one point below")
        for colour, mode in zip(itertools.cycle(_COLOURS), MODES, strict=False):
            found = {flops: results.accuracies(task, flops, mode.recovery, mode.ablation) for flops in FLOPS}
            found = {flops: values for flops, values in found.items() if values}
            if found:
                axes.plot(list(found), [fmean(values) for values in found.values()], color=colour, label=mode.title)
            for flops, values in found.items():
                axes.plot([flops] * len(values), values, ".", color=colour, markersize=5, alpha=0.6)
        axes.set_ylim(dense - _SHOWN, dense + 1.5)
        axes.set_title(TASKS[task].model, fontsize=10)
        axes.set_xlabel("share of the attention and FFN FLOPs kept")
        axes.set_ylabel("accuracy in percent")
        axes.spines[["top", "right"]].set_visible(False)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
