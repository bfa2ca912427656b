"""Pruning at random: scores from a generator, then the same search as for any other score."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from ...anatomy import ModelAnatomy
from ...calibration import CalibrationData
from ...errors import PruningError
from ...report.clock import StageClock
from ...scores import RandomScores, random_scores
from ..base import Cut, StagedStrategy
from ..dropped_layers import cut_layers
from ..mask_pruner import chosen
from ..scored import ScoredUnits, choose_by_scores, choose_heads_by_scores
from ..training import TrainingPruner
from ..unit_pruner import UnitPruner
from ..weight_pruner import WeightPruner
from .config import RandomPruningConfig


def draw_scores(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: RandomPruningConfig,
    data: CalibrationData,
    clock: StageClock,
) -> ScoredUnits:
    """Random scores, the same on every process."""
    with clock("scores"):
        return ScoredUnits.of(model, anatomy, config, data, random_scores(anatomy.blocks, config.seed))


def choose_at_random(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: RandomPruningConfig,
    data: CalibrationData,
    clock: StageClock,
    units: ScoredUnits,
) -> Cut:
    """Decides which heads and filters, or which layers go; the same on every process."""
    if config.layers is not None:
        generator = torch.Generator().manual_seed(config.seed)
        return cut_layers(anatomy, config, clock, units.lengths, partial(_drawn_places, generator=generator))
    choose = choose_by_scores if config.heads is None else choose_heads_by_scores
    return choose(model, anatomy, config, data, clock, units)


prune_at_random = StagedStrategy(draw_scores, choose_at_random)


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
