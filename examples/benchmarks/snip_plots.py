"""The pictures of the study of SNIP (Lin et al. 2020, Figures 2 to 4)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from snip_cells import DENSE, KINDS
from snip_results import METRICS, MeasuredCurve, Predictions, StudyResults

from hf_prune.report import CurveLevel, TradeOffCurve, plot_activation_maxima, plot_curves, plot_pruning_map


def draw_pictures(results: StudyResults, folder: Path) -> None:
    """Writes for every task all curves in one picture, the outputs' distributions in one, and a map per joint curve."""
    for task in results.tasks:
        curves = list(results.curves(task))
        metric = f"{METRICS[task]}, in %"
        drawn = {}
        for seed in results.seeds(task):
            dense = results.dense(task, seed)
            if dense is not None:
                drawn[f"{KINDS[DENSE].title}{f', seed {seed}' if seed else ''}"] = as_curve(dense)
        drawn |= {curve.title: curve.curve for curve in curves}
        if curves:
            named = {title: _renamed(curve, METRICS[task], metric) for title, curve in drawn.items()}
            plot_curves(named, metric, folder / f"snip_{task}_curves.png")
        joint = [curve for curve in curves if KINDS[curve.cell.kind].units == "joint"]
        for curve in joint:
            plot_pruning_map(curve.curve, folder / f"snip_{task}_{_file_name(curve)}_map.png")
        if joint:
            plot_activation_maxima({curve.title: curve.maxima for curve in joint}, folder / f"snip_{task}_maxima.png")


def as_curve(model: Predictions) -> TradeOffCurve:
    """A single model of full size."""
    return TradeOffCurve({}, {}, (CurveLevel(0, 1.0, 1.0, model.metrics, {}),))


def _renamed(curve: TradeOffCurve, old: str, new: str) -> TradeOffCurve:
    """The curve with a metric under the name that its axis is to have."""
    return replace(curve, levels=tuple(replace(level, metrics={new: level.metrics[old]}) for level in curve.levels))


def _file_name(curve: MeasuredCurve) -> str:
    return curve.cell.kind if not curve.cell.seed else f"{curve.cell.kind}_seed{curve.cell.seed}"
