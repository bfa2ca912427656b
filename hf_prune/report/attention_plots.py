"""Attention maps side by side with their scores (Zhang et al. 2020, Figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import PruningError
from .figures import FAINT, INK, finish, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_attention_maps(
    maps: Sequence[torch.Tensor] | torch.Tensor,
    scores: Sequence[float] | torch.Tensor,
    names: Sequence[str] | None = None,
    path: str | Path | None = None,
    *,
    title: str = "Attention and its scores",
    columns: int = 4,
) -> Figure:
    """Draws attention maps, each below its score, with one colour scale for all.

    Args:
        maps: one 2-D tensor per head, `[queries, keys]`; rows and columns at the end that hold only zeros, which fill
            maps up to a common size, are left out.
        scores: one number per map.
        names: what the maps are, `encoder.layer.3.attention, head 2` for instance.
        path: where to write the picture as well; the suffix names the format (`.png`, `.svg`, `.pdf`).
        title: above everything.
        columns: maps side by side.

    Returns:
        The figure, with an Agg canvas.

    Raises:
        PruningError: nothing to draw, different numbers of maps, scores and names, maps that are not matrices, or no
            matplotlib.
    """
    drawn = [_without_filling(each) for each in maps]
    numbers = [float(score) for score in scores]
    labels = [""] * len(drawn) if names is None else list(names)
    if not drawn or columns < 1 or not len(drawn) == len(numbers) == len(labels):
        raise PruningError(
            f"{len(drawn)} attention maps, {len(numbers)} scores and {len(labels)} names in {columns} columns cannot be"
            " drawn: give at least one map, with a score for each and names for all or none."
        )
    rows = -(-len(drawn) // columns)
    across = min(columns, len(drawn))
    figure = new_figure(0.6 + 2.4 * across, 0.8 + 2.6 * rows)
    panels = figure.subplots(rows, across, squeeze=False).flat
    top = max(float(each.max()) for each in drawn)
    for axes, each, number, label in zip(panels, drawn, numbers, labels, strict=False):
        image = axes.imshow(each.numpy(), cmap="Blues", vmin=0, vmax=top, aspect="auto", interpolation="nearest")
        axes.set_title(f"{number:.3f}", fontsize=10, color=INK)
        axes.set_xlabel(label, fontsize=8, color=FAINT)
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in list(figure.axes)[len(drawn) :]:
        axes.set_axis_off()
    figure.colorbar(image, ax=figure.axes, shrink=0.6, label="attention of a row's token to a column's")
    return finish(figure, title, path)


def _without_filling(attention: torch.Tensor) -> torch.Tensor:
    """The map up to its last row and column that are not all zeros."""
    if attention.dim() != 2 or not attention.numel():
        raise PruningError(f"An attention map is a matrix [queries, keys]; got the shape {tuple(attention.shape)}.")
    attention = attention.detach().float().cpu()
    used = attention.nonzero()
    height, width = (used.amax(dim=0) + 1).tolist() if len(used) else attention.shape
    return attention[:height, :width]
