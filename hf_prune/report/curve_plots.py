"""Trade-off curves as pictures (Lin et al. 2020, Figures 3 to 5)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import PruningError
from .curve import TradeOffCurve
from .figures import FAINT, INK, MARKERS, add_legend, draw_map, finish, label_lines, line_look, new_figure
from .map_rows import short_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LAYER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_UNITS = {"attention": "heads left", "feed_forward": "filters left"}


def plot_curves(
    curves: Mapping[str, TradeOffCurve], metric: str | None = None, path: str | Path | None = None
) -> Figure:
    """Draws a metric over the share of the attention and FFN parameters that is removed, one line per training.

    Args:
        curves: what to call a training ("with spectral normalisation") → its curve.
        metric: see `TradeOffCurve.values`; by default the first curve's own, see `TradeOffCurve.metric`.
        path: where to write the picture as well; the suffix names the format (`.png`, `.svg`, `.pdf`).

    Returns:
        The figure, with an Agg canvas.

    Raises:
        PruningError: matplotlib is not installed, there is nothing to draw, or a level has no such metric.
    """
    if not curves or not all(map(len, curves.values())):
        raise PruningError("There are no levels to draw; pass a name and a TradeOffCurve per training.")
    name = metric or next(iter(curves.values())).metric()[0]
    figure = new_figure(5.8, 4.2)
    axes = figure.subplots()
    for index, (label, curve) in enumerate(curves.items()):
        axes.plot(
            [100 * (1 - level.params) for level in curve.levels],
            curve.values(name),
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            label=label,
            **line_look(index),
        )
    label_lines(axes, "attention and FFN parameters removed, in %", name.removeprefix("eval_").replace("_", " "))
    add_legend(axes)
    return finish(figure, "What is lost on the way", path)


def plot_pruning_map(curve: TradeOffCurve, path: str | Path | None = None) -> Figure:
    """Draws which share of each sublayer's heads or filters is left, level by level (the paper's Figure 4).

    Rows are levels, named by the share of the parameters removed; columns are layers, and each kind of sublayer has a
    panel. Shares are in percent, of what the first level has.

    Args:
        curve: the levels.
        path: as for `plot_curves`.

    Returns:
        The figure.

    Raises:
        PruningError: matplotlib is not installed, or there is nothing to draw.
    """
    panels: dict[str, list[str]] = {}
    for key in curve.kinds:
        panels.setdefault(_LAYER_NUMBER.sub("*", key), []).append(key)
    if not panels or not len(curve):
        raise PruningError("There is no pruning map to draw: the curve has no levels.")
    widths = [max(4, len(keys)) for keys in panels.values()]
    figure = new_figure(1.4 + 0.5 * sum(widths), 1.8 + 0.3 * max(4, len(curve)))
    rows = [f"{100 * (1 - level.params):.1f} %" for level in curve.levels]
    drawn = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    for axes, (pattern, keys) in zip(drawn, panels.items(), strict=True):
        draw_map(axes, rows, short_labels(keys)[1], shares_left(curve, keys))
        axes.set_title(pattern, fontsize=10, color=INK)
        axes.set_xlabel(f"layer ({_UNITS[curve.kinds[keys[0]]]}, in %)", fontsize=9, color=FAINT)
    drawn[0].set_ylabel("parameters removed", fontsize=9, color=FAINT)
    return finish(figure, "What is left, layer by layer", path)


def shares_left(curve: TradeOffCurve, keys: Sequence[str]) -> npt.NDArray[np.float64]:
    """The share of some blocks' units that is left, `[levels, blocks]`; NaN where a block had none to begin with."""
    counts = np.array([[len(level.kept[key]) for key in keys] for level in curve.levels], dtype=np.float64)
    return np.divide(counts, counts[:1], out=np.full(counts.shape, np.nan), where=counts[:1] > 0)
