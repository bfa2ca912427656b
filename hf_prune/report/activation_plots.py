"""The distribution of max|F| over data, mapping by mapping (Lin et al. 2020, Figure 2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import PruningError
from ..gates import MappingKind
from .activation_maxima import MappingMaxima
from .figures import INK, add_legend, finish, label_lines, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS = 40
_MAP = "viridis"
_TITLES: dict[MappingKind, str] = {
    "heads": "attention, each head",
    "attention": "attention, all heads",
    "feed_forward": "feed-forward",
    "layer": "whole layers",
}


def plot_activation_maxima(models: Mapping[str, Sequence[MappingMaxima]], path: str | Path | None = None) -> Figure:
    """Draws how max|F| is distributed: one line per gate, one colour per layer, one panel per model and kind.

    Args:
        models: what to call a model ("with spectral normalisation") → its `activation_maxima`.
        path: where to write the picture as well; the suffix names the format (`.png`, `.svg`, `.pdf`).

    Returns:
        The figure, with an Agg canvas; models from top to bottom, on the same axis, in the same bins.

    Raises:
        PruningError: matplotlib is not installed, or there is nothing to draw.
    """
    drawn = {name: [item for item in mappings if item.values.numel()] for name, mappings in models.items()}
    kinds = list(dict.fromkeys(item.kind for mappings in drawn.values() for item in mappings))
    if not kinds:
        raise PruningError("There are no maxima to draw; pass a name and the activation_maxima of every model.")
    figure = new_figure(0.8 + 4.8 * len(kinds), 0.6 + 3.2 * len(drawn))
    panels = figure.subplots(len(drawn), len(kinds), squeeze=False, sharex="col")
    edges = {kind: _edges(kind, drawn.values()) for kind in kinds}
    for row, (name, mappings) in zip(panels, drawn.items(), strict=True):
        for axes, kind in zip(row, kinds, strict=True):
            _draw(axes, [item for item in mappings if item.kind == kind], edges[kind])
            axes.set_title(f"{name}: {_TITLES[kind]}", fontsize=10, color=INK)
            label_lines(axes, "largest absolute output", "share, in %")
            add_legend(axes)
    return finish(figure, "What residual mappings put out", path)


def _edges(kind: MappingKind, models: Iterable[Sequence[MappingMaxima]]) -> npt.NDArray[np.float64]:
    values = [item.values.double().numpy().ravel() for mappings in models for item in mappings if item.kind == kind]
    return np.histogram_bin_edges(np.concatenate(values), _BINS)


def _draw(axes: Axes, mappings: Sequence[MappingMaxima], edges: npt.NDArray[np.float64]) -> None:
    from matplotlib import colormaps

    colours = colormaps[_MAP](np.linspace(0, 0.9, len(mappings)))
    for index, (item, colour) in enumerate(zip(mappings, colours, strict=True)):
        for gate, values in enumerate(item.values.double().numpy().T):
            share = 100 * np.histogram(values, edges)[0] / len(values)
            # The layers between the first and the last one lie between them in colour, too.
            label = item.key if gate == 0 and index in (0, len(mappings) - 1) else None
            axes.stairs(share, edges, color=colour, linewidth=0.9, alpha=0.8, label=label)
