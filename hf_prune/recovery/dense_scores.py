"""Scores of units that come from what the dense model's blocks compute, and not from gradients alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from transformers import PreTrainedModel

from ..anatomy import ModelAnatomy
from ..calibration import Batch, CalibrationData
from ..offloading import device_of
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

    A step of `data.steps`: the curves that an interrupted run has kept are not made again.

    Args:
        model, anatomy, data, batches, progress: see `visit_dense_blocks`.
        metrics: by block key how much errors of its output count, `[hidden, hidden]`, the same on every process.
        ridge: see `removal_curve`.

    Returns:
        By block key. Errors are means over tokens, in the metric. Blocks without a metric have none, nor have experts
        and blocks that do not run on this data.
    """
    step, device = data.steps.step("curves"), device_of(model)
    curves: dict[str, RemovalCurve] = {}
    for block in anatomy.blocks:
        sizes = {"order": (torch.int64, (block.units,)), "errors": (torch.float64, (block.units,))}
        kept = step.read(block.key, sizes, device)
        if kept is not None:
            curves[block.key] = RemovalCurve(**kept[0])

    def measure(dense: DenseBlock) -> None:
        metric = metrics.get(dense.block.key)
        if metric is not None:
            together = max(1, dense.block.units // UPDATES)
            weight = metric_root(metric) @ dense.weight
            curve = removal_curve(dense.gram, weight, dense.columns, ridge, together)
            step.write(dense.block.key, {"order": curve.order, "errors": curve.errors})
            curves[dense.block.key] = curve

    visit_dense_blocks(model, anatomy, data, batches, measure, progress, known=tuple(curves))
    return curves


def contributed_energies(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    data: CalibrationData,
    batches: Iterable[Batch],
    progress: Callable[[str], None] = lambda key: None,
) -> dict[str, torch.Tensor]:
    """How much of its block's output each unit makes, by block key (see `unit_energies`, `visit_dense_blocks`).

    A step of `data.steps`, as in `removal_curves`.
    """
    step, device = data.steps.step("contributions"), device_of(model)
    energies: dict[str, torch.Tensor] = {}
    for block in anatomy.blocks:
        kept = step.read(block.key, {"energies": (torch.float64, (block.units,))}, device)
        if kept is not None:
            energies[block.key] = kept[0]["energies"]

    def measure(dense: DenseBlock) -> None:
        energies[dense.block.key] = unit_energies(dense.gram, dense.weight, dense.columns)
        step.write(dense.block.key, {"energies": energies[dense.block.key]})

    visit_dense_blocks(model, anatomy, data, batches, measure, progress, known=tuple(energies))
    return energies
