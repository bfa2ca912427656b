"""A picture of how many weights were removed where."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PruningError
from .matrix_plots import plot_shares
from .number_text import share_text
from .weight_report import WeightReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_removed_weights(report: WeightReport, path: str | Path | None = None) -> Figure:
    """Draws the sparsity of every pruned matrix in percent, as `plot_matrix_sparsity` does with masks.

    Args:
        report: the report.
        path: where to write the picture as well; the suffix names the format (`.png`, `.svg`, `.pdf`).

    Returns:
        The figure, with an Agg canvas.

    Raises:
        PruningError: matplotlib is not installed, or the report has no matrices.
    """
    if not report.matrices:
        raise PruningError(f"The report on {report.model_name!r} has no matrices, so there is nothing to draw.")
    share = share_text(report.removed, report.weights)
    title = f"{report.short_name}, {report.strategy_name} pruning: {share} of the weights removed, in % by matrix"
    return plot_shares({row.name: (row.removed, row.weights) for row in report.matrices}, title, path)
