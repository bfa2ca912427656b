"""A picture of what was kept, with matplotlib's object interface: no window, no global state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import PruningError
from .figures import FAINT, INK, finish, new_figure
from .map_rows import kept_shares, short_labels, units_per_bin
from .number_text import share_text
from .report import BlockReport, PruningReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILTER_BINS = 48

_PANELS = {"attention": ("Attention heads", "head"), "feed_forward": ("FFN filters", "filter")}
_SCALE = ("#e9edf0", "#a9c9e2", "#3d83ba", "#0b3157")  # none … all: grey is gone, and the order survives greyscale


def plot_kept_units(report: PruningReport, path: str | Path | None = None) -> Figure:
    """Draws which heads and filters stay: one row per block, with the counts beside it.

    Heads are a grid of single units. Filters are drawn in bins of neighbouring ones, coloured by the share that stays;
    the bin size is the same for all blocks. Blocks may differ in size: the grid of a smaller one ends earlier. A kind
    of unit that the model does not have gets no panel.

    Args:
        report: the report.
        path: where to write the picture as well; the suffix names the format (`.png`, `.svg`, `.pdf`).

    Returns:
        The figure, with an Agg canvas.

    Raises:
        PruningError: matplotlib is not installed, or the report has no blocks.
    """
    panels = {kind: [block for block in report.blocks if block.kind == kind] for kind in _PANELS}
    panels = {kind: blocks for kind, blocks in panels.items() if blocks}
    if not panels:
        raise PruningError(f"The report on {report.model_name!r} has no blocks, so there is nothing to draw.")
    rows = max(map(len, panels.values()))
    figure = new_figure(1.0 + 5.2 * len(panels), 1.9 + 0.34 * max(rows, 3))
    for axes, (kind, blocks) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        size = 1 if kind == "attention" else units_per_bin(blocks, FILTER_BINS)
        image = _draw_panel(axes, blocks, size, _PANELS[kind][1])
        kept = sum(block.kept_units for block in blocks), sum(block.dense_units for block in blocks)
        axes.set_title(f"{_PANELS[kind][0]}: {kept[0]:,} of {kept[1]:,} kept", fontsize=11, color=INK, pad=10)
        if kind == "feed_forward":
            _add_scale(figure, axes, image)
    return finish(figure, _title(report), path)


def _title(report: PruningReport) -> str:
    flops = share_text(report.pruned.flops, report.dense.flops)
    return f"{report.short_name}, {report.strategy_name} pruning: {flops} of the attention and FFN FLOPs"


def _draw_panel(axes: Axes, blocks: Sequence[BlockReport], size: int, unit: str) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    shares = [kept_shares(block, size) for block in blocks]
    columns = max(1, *map(len, shares))
    grid = np.full((len(blocks), columns), np.nan)
    for row, values in zip(grid, shares, strict=True):
        row[: len(values)] = values
    image = axes.pcolormesh(
        np.arange(columns + 1) * size,
        np.arange(len(blocks) + 1),
        np.ma.masked_invalid(grid),
        cmap=LinearSegmentedColormap.from_list("share kept", _SCALE),
        vmin=0,
        vmax=1,
        edgecolors="white",
        linewidth=1.2 if size == 1 else 0,
    )
    axes.set_ylim(len(blocks), 0)
    if size > 1:
        axes.hlines(range(1, len(blocks)), 0, columns * size, colors="white", linewidth=3)
    _label_panel(axes, blocks, size, columns, unit)
    return image


def _add_scale(figure: Figure, axes: Axes, image: Any) -> None:
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.03, ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["none", "half", "all"], fontsize=8, color=INK)
    bar.ax.tick_params(length=0)
    bar.set_label("share of the bin kept", fontsize=8, color=FAINT)
    bar.outline.set_visible(False)


def _label_panel(axes: Axes, blocks: Sequence[BlockReport], size: int, columns: int, unit: str) -> None:
    pattern, labels = short_labels([block.key for block in blocks])
    axes.set_yticks(np.arange(len(blocks)) + 0.5, labels, fontsize=9, color=INK)
    axes.set_ylabel(pattern if pattern != "*" else "", fontsize=9, color=FAINT)
    if size == 1:
        step = max(1, columns // 16)
        axes.set_xticks(np.arange(0, columns, step) + 0.5, [str(index) for index in range(0, columns, step)])
        axes.set_xlabel(unit, fontsize=9, color=FAINT)
    else:
        axes.set_xlim(0, columns * size)
        axes.set_xlabel(f"{unit}, in bins of {size}", fontsize=9, color=FAINT)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for row, block in enumerate(blocks):
        text = f"{block.kept_units:,} / {block.dense_units:,}"
        axes.annotate(text, (1.02, row + 0.5), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=INK)
