"""Which weights remain where, by layer and kind of matrix, and by head (Jiang et al. 2023, Figures 2 and 3)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from static_mask_cells import ABLATED, KINDS, LOCAL, SCORE, TABLES
from static_mask_tables import Entry, StudyResults
from tasks import TASKS

from hf_prune.anatomy import matrix_name
from hf_prune.report.figures import INK, add_legend, colours_of, draw_map, finish, label_lines, new_figure

OVERALL = "overall"
_COLUMNS = 4


def draw_pictures(results: StudyResults, folder: Path) -> None:
    """Writes two pictures of every task for which local or score masking was measured at 10 %."""
    for task in TABLES:
        found = {masking: results.get(task, masking, ABLATED) for masking in (LOCAL, SCORE)}
        entries = {KINDS[masking].title: entry for masking, entry in found.items() if entry is not None}
        if entries:
            plot_layers(entries, folder / f"static_mask_{task}_layers.png")
            plot_heads(entries, folder / f"static_mask_{task}_heads.png")


def remaining_by_layer(entry: Entry) -> dict[str, np.ndarray]:
    """Of every kind of matrix and of all together: the share that remains, by layer."""
    layers = list(dict.fromkeys(matrix_name(name).layer for name in entry.matrices))
    counts: dict[str, np.ndarray] = {}
    for name, pair in entry.matrices.items():
        for kind in (OVERALL, matrix_name(name).kind):
            sums = counts.setdefault(kind, np.zeros((2, len(layers))))
            sums[:, layers.index(matrix_name(name).layer)] += pair
    return {kind: remaining / whole for kind, (remaining, whole) in counts.items()}


def plot_layers(entries: Mapping[str, Entry], path: Path) -> None:
    """A panel per kind of matrix, a line per way of masking.

    Args:
        entries: by title, of one task.
        path: of the picture.
    """
    shares = {title: remaining_by_layer(entry) for title, entry in entries.items()}
    kinds = list(next(iter(shares.values())))
    rows = -(-len(kinds) // _COLUMNS)
    figure = new_figure(3 * _COLUMNS, 2.6 * rows)
    panels = figure.subplots(rows, _COLUMNS, sharey=True, squeeze=False).ravel()
    colours = colours_of(list(shares))
    for axes, kind in zip(panels, kinds, strict=False):
        for title, found in shares.items():
            layers = np.arange(1, len(found[kind]) + 1)
            axes.plot(layers, 100 * found[kind], color=colours[title], marker="o", markersize=4, label=title)
        axes.set_title(kind, fontsize=9, color=INK)
        label_lines(axes, "layer", "remaining, %")
    for axes in panels[len(kinds) :]:
        axes.set_axis_off()
    figure.axes[0].set_ylim(bottom=0)  # of all panels, once they hold their lines: small differences look small
    add_legend(figure.axes[0])
    finish(figure, f"Remaining weights by layer, {_task_title(entries)}", path)


def plot_heads(entries: Mapping[str, Entry], path: Path) -> None:
    """A map per way of masking: a row per layer, a column per head.

    Args:
        entries: by title, of one task.
        path: of the picture.
    """
    shares = {title: 1 - np.stack(list(entry.heads.values())) for title, entry in entries.items()}
    layers, heads = next(iter(shares.values())).shape
    figure = new_figure(len(shares) * (1 + 0.5 * max(6, heads)), 1.6 + 0.34 * max(3, layers))
    for axes, (title, values) in zip(figure.subplots(1, len(shares), squeeze=False)[0], shares.items(), strict=True):
        top = max(float(values.max()) for values in shares.values())
        draw_map(axes, _numbers(layers), _numbers(heads), values, top)
        axes.set_title(title, fontsize=9, color=INK)
        axes.set_xlabel("head", fontsize=9, color=INK)
        axes.set_ylabel("layer", fontsize=9, color=INK)
    finish(figure, f"Remaining weights by head, in %, {_task_title(entries)}", path)


def _task_title(entries: Mapping[str, Entry]) -> str:
    return TASKS[next(iter(entries.values())).task].title


def _numbers(count: int) -> list[str]:
    return [str(index) for index in range(1, count + 1)]
