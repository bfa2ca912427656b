"""The line charts of a pruning study (Gordon et al. 2020, Figures 1, 2, 4 and 7)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from ..errors import PruningError
from .figures import COLOURS, INK, MARKERS, add_legend, colours_of, finish, label_lines, line_look, new_figure
from .magnitude_order import MagnitudeShift

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class StudyRow:
    """One model of a study.

    Attributes:
        label: what the accuracy is measured on ("SST-2").
        sparsity: share of the weights that was removed.
        loss: of pre-training, of the pruned model before fine-tuning; None where it has none (the model was pruned
            after fine-tuning).
        accuracy: on the task, after fine-tuning.
        kind: how it was pruned ("pruned", "deleted", "random").
    """

    label: str
    sparsity: float
    loss: float | None
    accuracy: float
    kind: str = "pruned"


@dataclass(frozen=True)
class LineFit:
    """A straight line through accuracy over loss, by least squares.

    Attributes:
        slope: accuracy per unit of loss.
        intercept: accuracy at loss 0.
        r_squared: share of the accuracy's variance that the line explains; NaN if the accuracy does not vary.
    """

    slope: float
    intercept: float
    r_squared: float


def accuracy_by_loss(rows: Sequence[StudyRow]) -> LineFit | None:
    """How much accuracy a unit of pre-training loss is worth (Section 4.4 of the paper: linear for deleted weights).

    Args:
        rows: of one task and one kind; those without a loss do not count.

    Returns:
        The fit, or None for fewer than three different losses.
    """
    points = np.array([(row.loss, row.accuracy) for row in rows if row.loss is not None], dtype=np.float64)
    if len({loss for loss, _ in points}) < 3:
        return None
    centred = points - points.mean(0)
    slope = float(centred[:, 0] @ centred[:, 1] / (centred[:, 0] @ centred[:, 0]))
    left, variance = np.square(centred[:, 1] - slope * centred[:, 0]).sum(), np.square(centred[:, 1]).sum()
    intercept = float(points[:, 1].mean() - slope * points[:, 0].mean())
    return LineFit(slope, intercept, float(1 - left / variance) if variance else math.nan)


def plot_losses(rows: Sequence[StudyRow], path: str | Path | None = None) -> Figure:
    """Draws accuracy over sparsity, and accuracy over pre-training loss with the lines that fit it best.

    Colours tell kinds apart, markers labels; a line joins the models of one label and kind. The dashed lines are those
    of `accuracy_by_loss`. Without any loss there is no second panel.

    Args:
        rows: the models, in any order.
        path: where to write the picture as well; the suffix names the format (`.png`, `.svg`, `.pdf`).

    Returns:
        The figure, with an Agg canvas.

    Raises:
        PruningError: matplotlib is not installed, or there are no rows.
    """
    if not rows:
        raise PruningError("There are no rows to draw; pass a StudyRow per model of the study.")
    with_losses = any(row.loss is not None for row in rows)
    figure = new_figure(9.6 if with_losses else 5.4, 4.2)
    panels = figure.subplots(1, 2 if with_losses else 1, squeeze=False)[0]
    series: dict[tuple[str, str], list[StudyRow]] = {}
    for row in sorted(rows, key=lambda row: row.sparsity):
        series.setdefault((row.kind, row.label), []).append(row)
    colours = colours_of([row.kind for row in rows])
    markers = {label: MARKERS[i % len(MARKERS)] for i, label in enumerate(dict.fromkeys(row.label for row in rows))}
    for (kind, label), members in series.items():
        look = {"color": colours[kind], "marker": markers[label], "markersize": 5, "label": f"{label}, {kind}"}
        panels[0].plot([100 * row.sparsity for row in members], [row.accuracy for row in members], **look)
        if with_losses:
            _draw_losses(panels[1], members, look)
    label_lines(panels[0], "weights removed, in %", "accuracy")
    if with_losses:
        label_lines(panels[1], "pre-training loss", "accuracy")
    add_legend(panels[0])
    return finish(figure, "What pruning costs downstream", path)


def _draw_losses(axes: Axes, members: Sequence[StudyRow], look: Mapping[str, object]) -> None:
    points = [(row.loss, row.accuracy) for row in members if row.loss is not None]
    if points:
        axes.plot(*zip(*points, strict=True), linestyle="none", **look)  # type: ignore[arg-type]
    fit = accuracy_by_loss(members)
    if fit is not None:
        ends = np.array([min(points)[0], max(points)[0]])
        axes.plot(ends, fit.slope * ends + fit.intercept, linestyle="--", linewidth=1, color=str(look["color"]))


def plot_feature_similarity(
    similarities: Mapping[str, Mapping[str, torch.Tensor]], path: str | Path | None = None
) -> Figure:
    """Draws the cosine similarity of hidden features over the layers: one line per model, one panel per stack.

    Args:
        similarities: what to call a model ("50 %") → its `feature_similarity` to the dense one.
        path: as for `plot_losses`.

    Returns:
        The figure; 0 on the axis of layers is what goes into the first.

    Raises:
        PruningError: matplotlib is not installed, or there is nothing to draw.
    """
    stacks = list(dict.fromkeys(stack for parts in similarities.values() for stack in parts))
    if not stacks:
        raise PruningError("There are no similarities to draw; pass a name and a feature_similarity per model.")
    figure = new_figure(0.6 + 5 * len(stacks), 4.2)
    panels = figure.subplots(1, len(stacks), squeeze=False)[0]
    colours = colours_of(list(similarities))
    for axes, stack in zip(panels, stacks, strict=True):
        for name, parts in similarities.items():
            if stack in parts:
                axes.plot(range(len(parts[stack])), parts[stack].tolist(), marker="o", label=name, color=colours[name])
        label_lines(axes, "layer", "mean cosine similarity")
        if len(stacks) > 1:
            axes.set_title(stack.replace("_", " "), fontsize=10, color=INK)
        axes.xaxis.get_major_locator().set_params(integer=True)
    add_legend(panels[0])
    return finish(figure, "Hidden features, pruned against dense", path)


def plot_head_range(levels: Mapping[float, Mapping[str, torch.Tensor]], path: str | Path | None = None) -> Figure:
    """Draws the mean, smallest and largest sparsity of any head over the sparsity of the model (Figure 4, left).

    Args:
        levels: sparsity of the model → its `sparsity_per_head`.
        path: as for `plot_losses`.

    Returns:
        The figure.

    Raises:
        PruningError: matplotlib is not installed, or there is nothing to draw.
    """
    heads = {level: torch.cat([100 * shares for shares in blocks.values()]) for level, blocks in sorted(levels.items())}
    if not heads or not all(map(len, heads.values())):
        raise PruningError("There are no heads to draw; pass a sparsity_per_head for every sparsity.")
    figure = new_figure(5.4, 4.2)
    axes = figure.subplots()
    x = [100 * level for level in heads]
    axes.fill_between(
        x, [float(v.min()) for v in heads.values()], [float(v.max()) for v in heads.values()], color="#d5e4f0"
    )
    looks: tuple[tuple[Literal["min", "mean", "max"], str], ...] = (("max", ":"), ("mean", "-"), ("min", "--"))
    for name, style in looks:
        y = [float(getattr(shares, name)()) for shares in heads.values()]
        axes.plot(x, y, style, marker="o", markersize=4, color=COLOURS[0], label=name)
    label_lines(axes, "weights removed from the model, in %", "weights removed from a head, in %")
    add_legend(axes)
    return finish(figure, "Sparsity per head", path)


def plot_magnitude_shift(shifts: Mapping[str, MagnitudeShift], path: str | Path | None = None) -> Figure:
    """Draws how far weights move in the order of magnitude, over where they were before (Figure 7).

    Args:
        shifts: what to call a run ("3 epochs") → its `magnitude_shift`.
        path: as for `plot_losses`.

    Returns:
        The figure; a point stands in the middle of its bin of positions.

    Raises:
        PruningError: matplotlib is not installed, or there is nothing to draw.
    """
    if not shifts:
        raise PruningError("There are no shifts to draw; pass a name and a magnitude_shift per run.")
    figure = new_figure(5.4, 4.2)
    axes = figure.subplots()
    for index, (name, shift) in enumerate(shifts.items()):
        values = 100 * np.array(shift.total.by_position)
        middles = 100 * (np.arange(len(values)) + 0.5) / len(values)
        axes.plot(middles, values, marker="o", markersize=4, label=name, **line_look(index))
    label_lines(axes, "position before, in % of the weights, smallest first", "mean move, in % of the weights")
    add_legend(axes)
    return finish(figure, "Moves in the order of magnitude", path)
