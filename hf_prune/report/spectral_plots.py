"""The largest singular values of a model's matrices during training (Lin et al. 2020, Figure 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..anatomy import matrix_name
from ..errors import PruningError
from .figures import INK, add_legend, finish, label_lines, line_look, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_COLUMNS = 3


def plot_singular_values(history: Mapping[int, Mapping[str, float]], path: str | Path | None = None) -> Figure:
    """Draws singular values over the steps of a training: a panel per kind of matrix, a line per layer.

    Args:
        history: step → its `largest_singular_values`; matrices that have come or gone in between have shorter lines.
        path: where to write the picture as well; the suffix names the format (`.png`, `.svg`, `.pdf`).

    Returns:
        The figure, with an Agg canvas.

    Raises:
        PruningError: matplotlib is not installed, or there is nothing to draw.
    """
    panels = _panels(history)
    if not panels:
        raise PruningError("There are no singular values to draw; pass a step and a largest_singular_values per step.")
    columns = min(_MOST_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(4 * columns + 0.6, 2.9 * rows + 0.6)
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (title, lines) in zip(places, panels.items(), strict=False):
        for index, (label, points) in enumerate(lines.items()):
            axes.plot(*zip(*sorted(points), strict=True), label=label, **line_look(index))
        axes.set_title(title, fontsize=10, color=INK)
        label_lines(axes, "step", "largest singular value")
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    add_legend(figure.axes[0])
    return finish(figure, "Largest singular values", path)


def _panels(history: Mapping[int, Mapping[str, float]]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Title → label of a line → its points; models with two stacks of layers have panels for each."""
    every = dict.fromkeys(name for values in history.values() for name in values)
    names = [(name, matrix_name(name)) for name in every]
    stacks = {parts.layer.rpartition(".")[0] for _, parts in names if parts.layer}
    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for name, parts in names:
        stack, _, number = parts.layer.rpartition(".")
        title = f"{stack}, {parts.kind}" if stack and len(stacks) > 1 else parts.kind
        points = [(step, values[name]) for step, values in history.items() if name in values]
        panels.setdefault(title, {})[f"layer {number}" if number else parts.kind] = points
    return panels
