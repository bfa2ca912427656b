"""What the pictures share: a figure without a window, colours, lines, and maps with numbers in the cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import PruningError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150
INK, FAINT = "#22303c", "#6b7a86"
COLOURS = ("#3d83ba", "#e08a1e", "#3a9d6e", "#c8443c", "#7d5ba6", "#8a6d4b")
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLES = ("-", "--", "-.", ":")

_SCALE = ("#eef2f5", "#a9c9e2", "#3d83ba", "#0b3157")  # light is little, and the order survives greyscale
_DARK = 0.55  # of the scale: from here on numbers are white
_MOST_NUMBERS = 16  # columns: in more, a number is wider than its cell


def new_figure(width: float, height: float) -> Figure:
    """An empty figure with an Agg canvas, of so many inches.

    Raises:
        PruningError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise PruningError(
            "Drawing needs matplotlib, which is not installed. Install the extra: hf-prune[report]."
        ) from error
    figure = Figure(figsize=(width, height), facecolor="white", layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08))
    FigureCanvasAgg(figure)
    return figure


def finish(figure: Figure, title: str, path: str | Path | None) -> Figure:
    """Puts the title over everything and writes the figure to `path`, if there is one."""
    figure.suptitle(title, fontsize=12, color=INK, fontweight="bold")
    if path is not None:
        figure.savefig(path, dpi=DOTS_PER_INCH)
    return figure


def label_lines(axes: Axes, x: str, y: str) -> None:
    """Names both axes of a line chart, and takes the box away."""
    axes.set_xlabel(x, fontsize=9, color=FAINT)
    axes.set_ylabel(y, fontsize=9, color=FAINT)
    axes.tick_params(labelsize=9, labelcolor=INK, color=FAINT)
    axes.grid(color="#e3e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def add_legend(axes: Axes) -> None:
    """A legend, where something has a label."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8, labelcolor=INK, frameon=False)


def draw_map(
    axes: Axes, rows: Sequence[str], columns: Sequence[str], values: npt.NDArray[np.float64], top: float = 1.0
) -> QuadMesh:
    """Draws shares as a map with the first row at the top; NaN is an empty cell.

    Args:
        axes: where.
        rows, columns: labels.
        values: `[rows, columns]`, from 0 to `top`.
        top: the value of the darkest colour.
    """
    from matplotlib.colors import LinearSegmentedColormap

    image = axes.pcolormesh(
        np.arange(len(columns) + 1),
        np.arange(len(rows) + 1),
        np.ma.masked_invalid(values),
        cmap=LinearSegmentedColormap.from_list("share", _SCALE),
        vmin=0,
        vmax=top,
        edgecolors="white",
        linewidth=1.2,
    )
    axes.set_ylim(len(rows), 0)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows, fontsize=9, color=INK)
    step = max(1, len(columns) // 16) if all(label.isdecimal() for label in columns) else 1
    shown = list(range(0, len(columns), step))
    axes.set_xticks(np.array(shown) + 0.5, [columns[index] for index in shown], fontsize=9, color=INK)
    if any(len(label) > 4 for label in columns):
        for label in axes.get_xticklabels():
            label.set(rotation=35, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if len(columns) <= _MOST_NUMBERS:
        _write_numbers(axes, values, top)
    return image


def _write_numbers(axes: Axes, values: npt.NDArray[np.float64], top: float) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value > _DARK * top else INK
            place = column + 0.5, row + 0.5
            axes.text(*place, f"{100 * value:.1f}", ha="center", va="center", fontsize=8, color=colour)


def line_look(index: int) -> dict[str, Any]:
    """Colour and style of a line by its number: the colours come again in another style."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": STYLES[index // len(COLOURS) % len(STYLES)]}


def colours_of(names: Sequence[str]) -> Mapping[str, str]:
    """A colour for each name, in the order in which they come; they repeat where there are more names."""
    return {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(dict.fromkeys(names))}
