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

Tensors = dict[str, torch.Tensor]


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

    def measure(dense: DenseBlock) -> Tensors | None:
        metric = metrics.get(dense.block.key)
        if metric is None:
            return None
        together = max(1, dense.block.units // UPDATES)
        weight = metric_root(metric) @ dense.weight
        curve = removal_curve(dense.gram, weight, dense.columns, ridge, together)
        return {"order": curve.order, "errors": curve.errors}

    types = {"order": torch.int64, "errors": torch.float64}
    found = _by_block(model, anatomy, data, batches, progress, "curves", types, measure)
    return {key: RemovalCurve(**tensors) for key, tensors in found.items()}


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

    def measure(dense: DenseBlock) -> Tensors:
        return {"energies": unit_energies(dense.gram, dense.weight, dense.columns)}

    types = {"energies": torch.float64}
    found = _by_block(model, anatomy, data, batches, progress, "contributions", types, measure)
    return {key: tensors["energies"] for key, tensors in found.items()}


def _by_block(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    data: CalibrationData,
    batches: Iterable[Batch],
    progress: Callable[[str], None],
    name: str,
    types: Mapping[str, torch.dtype],
    measure: Callable[[DenseBlock], Tensors | None],
) -> dict[str, Tensors]:
    """What `measure` makes of the blocks, by key; those of which it makes nothing are left out.

    Args:
        model, anatomy, data, batches, progress: see `visit_dense_blocks`.
        name: of the step that it is of `data.steps`.
        types: of the tensors that `measure` returns, each `[units]`.
        measure: the measurement.
    """
    step, device = data.steps.step(name), device_of(model)
    found: dict[str, Tensors] = {}
    for block in anatomy.blocks:
        kept = step.read(block.key, {part: (dtype, (block.units,)) for part, dtype in types.items()}, device)
        if kept is not None:
            found[block.key] = kept[0]

    def visit(dense: DenseBlock) -> None:
        tensors = measure(dense)
        if tensors is not None:
            step.write(dense.block.key, tensors)
            found[dense.block.key] = tensors

    visit_dense_blocks(model, anatomy, data, batches, visit, progress, known=tuple(found))
    return found
