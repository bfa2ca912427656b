"""Maps of what happened to the matrices and heads of a model: a row per layer, a column per kind of matrix or head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..anatomy import matrix_name
from ..errors import PruningError
from .figures import FAINT, draw_map, finish, new_figure
from .map_rows import short_labels
from .number_text import share_text
from .overlap import MaskOverlap
from .sparsity_tables import matrix_sparsity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Shares = Mapping[str, tuple[float, float]]


def plot_matrix_sparsity(source: nn.Module | Mapping[str, torch.Tensor], path: str | Path | None = None) -> Figure:
    """Draws the sparsity of every matrix in percent; matrices outside of the layers have a panel of their own.

    Args:
        source: masks or a model, as for `matrix_sparsity`.
        path: where to write the picture as well; the suffix names the format (`.png`, `.svg`, `.pdf`).

    Returns:
        The figure, with an Agg canvas.

    Raises:
        PruningError: matplotlib is not installed, or as `matrix_sparsity`.
    """
    rows = matrix_sparsity(source)
    total = share_text(sum(row.removed for row in rows), sum(row.weights for row in rows))
    return plot_shares(
        {row.name: (row.removed, row.weights) for row in rows}, f"Weights removed, in %: {total} in all", path
    )


def plot_mask_overlap(overlap: MaskOverlap, path: str | Path | None = None) -> Figure:
    """Draws, for every matrix, the share of the weights removed by either mask that both remove, in percent.

    Args:
        overlap: from `mask_overlap`. A matrix of which nothing is removed is an empty cell.
        path: as for `plot_matrix_sparsity`.

    Returns:
        The figure; its title has the total, and what chance would give.

    Raises:
        PruningError: matplotlib is not installed.
    """
    total = overlap.total
    texts = [share_text(share, 1) for share in (total.jaccard, total.chance_jaccard)]
    title = f"Removed by both, of those removed by either, in %: {texts[0]} in all, {texts[1]} by chance"
    pairs = {name: (row.removed_by_both, row.removed_by_either) for name, row in overlap.matrices.items()}
    return plot_shares(pairs, title, path)


def plot_head_sparsity(sparsity: Mapping[str, torch.Tensor], path: str | Path | None = None) -> Figure:
    """Draws the share of zeros in every head, in percent: a row per block, a column per head.

    Args:
        sparsity: from `sparsity_per_head`; blocks may have different numbers of heads.
        path: as for `plot_matrix_sparsity`.

    Returns:
        The figure.

    Raises:
        PruningError: matplotlib is not installed, or there are no heads.
    """
    figure = new_figure(1.6 + 0.5 * max([4, *map(len, sparsity.values())]), 1.5 + 0.34 * max(3, len(sparsity)))
    columns = max(map(len, sparsity.values()), default=0)
    if not columns:
        raise PruningError("There are no heads to draw: the sparsity per head is empty.")
    values = np.full((len(sparsity), columns), np.nan)
    for row, shares in zip(values, sparsity.values(), strict=True):
        row[: len(shares)] = shares.numpy()
    pattern, labels = short_labels(list(sparsity))
    axes = figure.subplots()
    draw_map(axes, labels, [str(index) for index in range(columns)], values)
    axes.set_xlabel("head", fontsize=9, color=FAINT)
    axes.set_ylabel(pattern if pattern != "*" else "", fontsize=9, color=FAINT)
    ends = " to ".join(share_text(share, 1) for share in (np.nanmin(values), np.nanmax(values)))
    return finish(figure, f"Weights removed per head, in %: {ends}", path)


def plot_shares(shares: Shares, title: str, path: str | Path | None) -> Figure:
    """A map of shares by layer and kind of matrix, and beside it what is in no layer.

    Args:
        shares: (part, whole) by parameter name.
        title: above the map.
        path: where to write the picture as well, if anywhere.
    """
    inside = {name: pair for name, pair in shares.items() if matrix_name(name).layer}
    outside = {name: pair for name, pair in shares.items() if name not in inside}
    layers = list(dict.fromkeys(matrix_name(name).layer for name in inside))
    kinds = list(dict.fromkeys(matrix_name(name).kind for name in inside))
    widths = [width for width, part in ((max(3, len(kinds)), inside), (2, outside)) if part]
    figure = new_figure(2.4 + 0.9 * sum(widths), 2.6 + 0.34 * max(3, len(layers), len(outside)))
    panels = iter(figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0])
    if inside:
        axes = next(panels)
        pattern, labels = short_labels(layers)
        draw_map(axes, labels, kinds, _cells(inside, layers, kinds))
        axes.set_ylabel(pattern if pattern != "*" else "", fontsize=9, color=FAINT)
    if outside:
        names = [matrix_name(name).kind for name in outside]
        draw_map(next(panels), names, [""], _cells(outside, [""], names).T)
    return finish(figure, title, path)


def _cells(shares: Shares, layers: list[str], kinds: list[str]) -> np.ndarray:
    """Shares as `[layers, kinds]`; matrices in one cell (experts) are taken together."""
    sums = np.zeros((2, len(layers), len(kinds)))
    for name, pair in shares.items():
        place = matrix_name(name)
        sums[:, layers.index(place.layer), kinds.index(place.kind)] += pair
    return np.divide(sums[0], sums[1], out=np.full(sums[0].shape, np.nan), where=sums[1] > 0)
