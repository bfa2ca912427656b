"""Fast post-training pruning: gradients → search → rearrangement → repair, each step a room of its own."""

from __future__ import annotations

from typing import cast

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from ...anatomy import ModelAnatomy
from ...budget import data_lengths, select_units
from ...calibration import CalibrationData
from ...recovery import MaskTuner, Repair, Solver, reconstruct, refit_weights
from ...recovery.rearrange import rearrange_with_gram
from ...report.clock import StageClock
from ...scores import GradientRows, iterate_gradients, magnitude_scores
from ...surgery import PruningPlan
from ..base import Cut
from .config import FisherPruningConfig


def prune_by_fisher(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: FisherPruningConfig,
    data: CalibrationData,
    clock: StageClock,
) -> Cut:
    """Decides which heads and filters go, and repairs what stays (Kwon et al. 2022, Figure 2)."""
    rows: dict[str, GradientRows] = {}
    with clock("gradients"):
        lengths = data_lengths(model, anatomy, data, config.sequence_length)
        if config.importance != "magnitude" or config.rearranges:
            rows = data.agree(lambda: collect_gradients(model, anatomy, data, keep_rows=config.rearranges))
        scores = unit_scores(model, anatomy, config, rows, data)
    with clock("search"):
        selection = select_units(model, anatomy, scores, config, data, lengths)
    masks = selection.masks
    if config.rearranges:
        with clock("rearrangement"):
            masks = rearrange_masks(masks, rows, data)
    rows.clear()
    plan = PruningPlan.from_masks(anatomy.blocks, [masks[block.key] for block in anatomy.blocks])
    notes = list(selection.notes)
    with clock("repair"):
        repairs = repair_blocks(model, anatomy, config, data, plan, notes)
    return Cut(plan, lengths, repairs, tuple(notes))


def collect_gradients(
    model: PreTrainedModel, anatomy: ModelAnatomy, data: CalibrationData, keep_rows: bool = True
) -> dict[str, GradientRows]:
    """Gate gradients of every block over this process's calibration data."""
    rows = {block.key: GradientRows(block.units, model.device, keep_rows) for block in anatomy.blocks}
    for gradients in iterate_gradients(
        model, anatomy, tqdm(data, total=data.batches, desc="Gate gradients", unit="batch")
    ):
        for block, gradient in zip(anatomy.blocks, gradients, strict=True):
            rows[block.key].add(gradient)
    return rows


def unit_scores(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: FisherPruningConfig,
    rows: dict[str, GradientRows],
    data: CalibrationData,
) -> dict[str, torch.Tensor]:
    """One score tensor per block, the same on every process."""
    if config.importance == "magnitude":
        scores = magnitude_scores(model, anatomy.blocks)
    elif config.importance == "gradient":
        scores = [data.sum(rows[block.key].absolute_sum.clone()) for block in anatomy.blocks]
    else:
        scores = [data.sum(rows[block.key].square_sum.clone()) for block in anatomy.blocks]
    return {block.key: score for block, score in zip(anatomy.blocks, scores, strict=True)}


def rearrange_masks(
    masks: dict[str, torch.Tensor], rows: dict[str, GradientRows], data: CalibrationData
) -> dict[str, torch.Tensor]:
    """Every block's mask after rearrangement; one Gram matrix is in memory at a time."""
    return {key: rearrange_with_gram(mask, _gram(rows[key], data)) for key, mask in masks.items()}


def _gram(rows: GradientRows, data: CalibrationData) -> torch.Tensor:
    matrix = rows.matrix().double()
    return data.sum(matrix.T @ matrix)


def repair_blocks(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: FisherPruningConfig,
    data: CalibrationData,
    plan: PruningPlan,
    notes: list[str],
) -> dict[str, Repair]:
    """The repair that `config` asks for; what a reader should know is added to `notes`."""
    if config.recovery == "none":
        return {}
    tuner = MaskTuner(cast(Solver, config.solver), config.damp) if config.recovery == "mask_tuning" else None
    units = {block.key: plan.units(block) for block in anatomy.blocks}
    with tqdm(total=len(anatomy.blocks), desc="Repair", unit="block") as bar:
        repairs = reconstruct(
            model,
            anatomy,
            units,
            data,
            data.take(config.refit_examples),
            tuner or refit_weights,
            progress=lambda key: bar.update(),
        )
    if tuner is not None and tuner.stopped_at is not None:
        notes.append(f"Mask tuning stopped at {tuner.stopped_at}, whose scales left [-10, 10] (as the paper does).")
    return repairs
