"""A picture of the accuracy table: accuracy over FLOPs, a line per recovery, a panel per task."""

from __future__ import annotations

from pathlib import Path

from accuracy_cells import FLOPS, FULL
from accuracy_results import AccuracyResults
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tasks import TASKS

_COLOURS = {"none": "#9aa5ae", "mask_tuning": "#3d83ba", "weights": "#0b3157"}
_LABELS = {"none": "no recovery", "mask_tuning": "mask tuning", "weights": "weight refit"}


def plot_accuracy(results: AccuracyResults, path: Path) -> None:
    """Draws the default pipeline's accuracy with its intervals over the calibration samples."""
    figure = Figure(figsize=(5.2 * len(results.tasks), 4), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(results.tasks), squeeze=False)[0]
    for axes, task in zip(panels, results.tasks, strict=True):
        dense = results.dense(task)[0]
        axes.axhline(dense, color="#22303c", linewidth=1, label="dense")
        axes.axhline(dense - 1, color="#22303c", linewidth=1, linestyle=":", label="one point below")
        for recovery in results.recoveries:
            found = [results.summary(task, flops, recovery, FULL) for flops in FLOPS]
            points = [summary for summary in found if summary is not None]
            axes.errorbar(
                [summary.flops for summary in points],
                [summary.accuracy.mean for summary in points],
                yerr=[summary.accuracy.half_width or 0 for summary in points],
                color=_COLOURS[recovery],
                label=_LABELS[recovery],
                marker="o",
                markersize=4,
                capsize=3,
            )
        axes.set_title(TASKS[task].model, fontsize=10)
        axes.set_xlabel("share of the attention and FFN FLOPs kept")
        axes.set_ylabel("accuracy in percent")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
