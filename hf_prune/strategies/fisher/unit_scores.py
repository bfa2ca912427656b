"""How important each unit is, by the metric that the configuration names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from ...anatomy import ModelAnatomy
from ...calibration import CalibrationData
from ...errors import PruningError
from ...recovery import contributed_energies, removal_curves
from ...scores import (
    GradientRows,
    Labels,
    OutputInformation,
    blend_scores,
    collect_gradients,
    magnitude_scores,
)
from .config import FisherPruningConfig

# Shares of the representational part that are tried where none is given.
BLENDS = (0.0, 0.25, 0.5, 0.75)


@dataclass(frozen=True)
class GradientStatistics:
    """What the passes backward over the calibration data leave behind.

    Attributes:
        rows: this process's gate gradients, by block key.
        output_information: how much errors of a block's output count, by block key, over all processes; empty where
            nobody needs it.
    """

    rows: dict[str, GradientRows] = field(default_factory=dict)
    output_information: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def collect(
        cls,
        model: PreTrainedModel,
        anatomy: ModelAnatomy,
        data: CalibrationData,
        labels: Labels = "data",
        *,
        keep_rows: bool = True,
        outputs: bool = True,
    ) -> GradientStatistics:
        """From one pass over the calibration data.

        Args:
            model: the dense model.
            anatomy: from `describe_model`.
            data: the calibration data.
            labels: see `collect_gradients`.
            keep_rows: see `collect_gradients`.
            outputs: whether `output_information` is wanted, too.
        """
        information = OutputInformation(model, anatomy) if outputs else None
        rows = data.agree(lambda: collect_gradients(model, anatomy, data, keep_rows, labels, information))
        matrices = information.matrices if information is not None else {}
        return cls(rows, {key: data.sum(matrix) for key, matrix in matrices.items()})


def score_candidates(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: FisherPruningConfig,
    statistics: GradientStatistics,
    data: CalibrationData,
) -> tuple[dict[str, torch.Tensor], ...]:
    """The scores that `config` names, by block key, the same on every process; several where a trial has to choose."""
    if config.importance == "magnitude":
        return (_by_key(anatomy, magnitude_scores(model, anatomy.blocks)),)
    rows = statistics.rows
    if config.importance == "gradient":
        return ({key: data.sum(row.absolute_sum.clone()) for key, row in rows.items()},)
    fisher = {key: data.sum(row.square_sum.clone()) for key, row in rows.items()}
    if config.importance == "after_refit":
        return (fisher | _scores_after_refit(model, anatomy, config, statistics, data),)
    if config.importance == "blended":
        energies = _energies(model, anatomy, config, data)
        shares = BLENDS if config.blend is None else (config.blend,)
        return tuple(blend_scores(fisher, energies, share) for share in shares)
    return (fisher,)


def _scores_after_refit(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: FisherPruningConfig,
    statistics: GradientStatistics,
    data: CalibrationData,
) -> dict[str, torch.Tensor]:
    """Of every block that can be refitted; other scores are on the same scale, both being Fisher information."""
    with tqdm(total=len(anatomy.blocks), desc="Removal curves", unit="block") as bar:
        curves = removal_curves(
            model,
            anatomy,
            data,
            data.take(config.refit_examples),
            statistics.output_information,
            progress=lambda key: bar.update(),
        )
    return data.broadcast({key: curve.scores().cpu() for key, curve in curves.items()})


def _energies(
    model: PreTrainedModel, anatomy: ModelAnatomy, config: FisherPruningConfig, data: CalibrationData
) -> dict[str, torch.Tensor]:
    """What each unit contributes to its block's output; zero in blocks that do not run on this data."""
    experts = [block.key for block in anatomy.blocks if block.output.expert is not None]
    if experts:
        raise PruningError(
            "importance='blended' needs what every unit contributes to its block's output, which is not measured for"
            f" experts ({experts[0]}). Use importance='fisher' or 'after_refit'."
        )
    with tqdm(total=len(anatomy.blocks), desc="Contributions", unit="block") as bar:
        batches = data.take(config.refit_examples)
        found = contributed_energies(model, anatomy, data, batches, progress=lambda key: bar.update())
    nothing = [torch.zeros(block.units, dtype=torch.float64, device=model.device) for block in anatomy.blocks]
    return _by_key(anatomy, nothing) | found


def _by_key(anatomy: ModelAnatomy, scores: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {block.key: score for block, score in zip(anatomy.blocks, scores, strict=True)}
