"""Magnitude pruning: of single weights (Gordon et al. 2020), and of heads and filters."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from ...anatomy import ModelAnatomy
from ...calibration import CalibrationData
from ...report.clock import StageClock
from ...scores import MagnitudeScores, magnitude_scores
from ..base import StagedStrategy
from ..mask_pruner import chosen
from ..scored import ScoredUnits, choose_by_scores
from ..training import TrainingPruner
from ..unit_pruner import UnitPruner
from ..weight_pruner import WeightPruner
from .config import MagnitudePruningConfig


def measure_magnitudes(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: MagnitudePruningConfig,
    data: CalibrationData,
    clock: StageClock,
) -> ScoredUnits:
    """Σ|w| of every unit."""
    with clock("scores"):
        return ScoredUnits.of(model, anatomy, config, data, unit_magnitudes(model, anatomy))


# The heads and filters with the smallest Σ|w| go.
prune_by_magnitude = StagedStrategy(measure_magnitudes, choose_by_scores)


def train_by_magnitude(model: Any, config: MagnitudePruningConfig, steps: int) -> TrainingPruner:
    """Removes the smallest weights, or heads and filters, while the model is trained."""
    if config.prunes_weights:
        return WeightPruner(model, config, steps, chosen(model, config), MagnitudeScores())
    return UnitPruner(model, config, steps, unit_magnitudes)


def unit_magnitudes(model: Any, anatomy: ModelAnatomy) -> list[torch.Tensor]:
    """Σ|w| of every unit."""
    return magnitude_scores(model, anatomy.blocks)
