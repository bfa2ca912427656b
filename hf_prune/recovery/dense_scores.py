"""Scores of units that come from what the dense model's blocks compute, and not from gradients alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from transformers import PreTrainedModel

from ..anatomy import ModelAnatomy
from ..calibration import Batch, CalibrationData
from ..scores import RemovalCurve, metric_root, removal_curve, unit_energies
from .dense_blocks import DenseBlock, visit_dense_blocks

# The middle of what the refit chooses from, relative to the mean square of the activations.
RIDGE = 1e-2
# Blocks of many units remove this part of them between two updates of all of their statistics.
UPDATES = 64


def removal_curves(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    data: CalibrationData,
    batches: Iterable[Batch],
    metrics: Mapping[str, torch.Tensor],
    progress: Callable[[str], None] = lambda key: None,
    ridge: float = RIDGE,
) -> dict[str, RemovalCurve]:
    """What every block loses when units are removed and the rest is refitted (see `removal_curve`).

    Args:
        model, anatomy, data, batches, progress: see `visit_dense_blocks`.
        metrics: by block key how much errors of its output count, `[hidden, hidden]`, the same on every process.
        ridge: see `removal_curve`.

    Returns:
        By block key. Errors are means over tokens, in the metric. Blocks without a metric have none, nor have experts
        and blocks that do not run on this data.
    """
    curves: dict[str, RemovalCurve] = {}

    def measure(dense: DenseBlock) -> None:
        metric = metrics.get(dense.block.key)
        if metric is not None:
            together = max(1, dense.block.units // UPDATES)
            weight = metric_root(metric) @ dense.weight
            curves[dense.block.key] = removal_curve(dense.gram, weight, dense.columns, ridge, together)

    visit_dense_blocks(model, anatomy, data, batches, measure, progress)
    return curves


def contributed_energies(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    data: CalibrationData,
    batches: Iterable[Batch],
    progress: Callable[[str], None] = lambda key: None,
) -> dict[str, torch.Tensor]:
    """How much of its block's output each unit makes, by block key (see `unit_energies`, `visit_dense_blocks`)."""
    energies: dict[str, torch.Tensor] = {}

    def measure(dense: DenseBlock) -> None:
        energies[dense.block.key] = unit_energies(dense.gram, dense.weight, dense.columns)

    visit_dense_blocks(model, anatomy, data, batches, measure, progress)
    return energies
