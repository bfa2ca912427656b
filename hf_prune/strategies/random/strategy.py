"""Pruning at random: scores from a generator, then the same search as for any other score."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from ...anatomy import ModelAnatomy
from ...budget import data_lengths, select_heads
from ...calibration import CalibrationData
from ...errors import PruningError
from ...report.clock import StageClock
from ...scores import RandomScores, random_scores
from ...surgery import PruningPlan
from ..base import Cut
from ..dropped_layers import cut_layers
from ..mask_pruner import chosen
from ..scored import cut_by_scores
from ..training import TrainingPruner
from ..unit_pruner import UnitPruner
from ..weight_pruner import WeightPruner
from .config import RandomPruningConfig


def prune_at_random(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: RandomPruningConfig,
    data: CalibrationData,
    clock: StageClock,
) -> Cut:
    """Decides which heads and filters, or which layers go; the same on every process."""
    if config.layers is not None:
        generator = torch.Generator().manual_seed(config.seed)
        return cut_layers(model, anatomy, config, data, clock, partial(_drawn_places, generator=generator))
    scores = random_scores(anatomy.blocks, config.seed)
    if config.heads is None:
        return cut_by_scores(model, anatomy, config, data, clock, scores)
    with clock("search"):
        lengths = data_lengths(model, anatomy, data, config.sequence_length)
        by_key = {block.key: score for block, score in zip(anatomy.blocks, scores, strict=True)}
        selection = select_heads(anatomy, by_key, config, per_layer=True)
    plan = PruningPlan.from_masks(anatomy.blocks, [selection.masks[block.key] for block in anatomy.blocks])
    return Cut(plan, lengths, notes=tuple(selection.notes))


def train_at_random(model: Any, config: RandomPruningConfig, steps: int) -> TrainingPruner:
    """Removes weights, or heads and filters, at random while the model is trained."""
    if config.prunes_weights:
        return WeightPruner(model, config, steps, chosen(model, config), RandomScores(config.seed))
    keyword, value = config.budget
    if keyword in ("heads", "layers"):
        raise PruningError(
            f"{keyword}={value:g} is pruned at random at one go: use prune_model, and train the pruned model."
        )
    return UnitPruner(model, config, steps, partial(_drawn, seed=config.seed))


def _drawn(model: Any, anatomy: ModelAnatomy, seed: int) -> list[torch.Tensor]:
    return random_scores(anatomy.blocks, seed)


def _drawn_places(names: Sequence[str], count: int, generator: torch.Generator) -> list[int]:
    return sorted(torch.randperm(len(names), generator=generator)[:count].tolist())
