"""How important each unit is, by the metric that the configuration names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from ...anatomy import ModelAnatomy
from ...budget import Lengths
from ...calibration import Batch, CalibrationData
from ...errors import PruningError
from ...offloading import device_of
from ...recovery import contributed_energies, removal_curves
from ...scores import (
    GradientRows,
    Labels,
    OutputInformation,
    blend_scores,
    collect_gradients,
    magnitude_scores,
    whose_labels,
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
        batches: Sequence[Batch] | None = None,
    ) -> GradientStatistics:
        """From one pass over the calibration data.

        Args:
            model: the dense model.
            anatomy: from `describe_model`.
            data: the calibration data.
            labels: see `collect_gradients`.
            keep_rows: see `collect_gradients`.
            outputs: whether `output_information` is wanted, too.
            batches: see `collect_gradients`.
        """
        information = OutputInformation(model, anatomy) if outputs else None
        rows = data.agree(lambda: collect_gradients(model, anatomy, data, keep_rows, labels, information, batches))
        matrices = {} if information is None else information.matrices
        for key in list(matrices) if data.processes > 1 else ():
            matrices[key] = data.sum(matrices[key])
        return cls(rows, matrices)


@dataclass(frozen=True)
class FisherStatistics:
    """What there is to know of a model whatever the budget.

    Attributes:
        candidates: scores, by block key, the same on every process. Of several, what is best under a budget is found
            out by trial.
        lengths: tokens that costs are counted for.
        rows: this process's gate gradients, by block key, as far as rearrangement needs them.
        labels: whose labels the gradients are for.
    """

    candidates: tuple[Mapping[str, torch.Tensor], ...]
    lengths: int | Lengths
    rows: Mapping[str, GradientRows]
    labels: Labels = "data"

    @classmethod
    def collect(
        cls,
        model: PreTrainedModel,
        anatomy: ModelAnatomy,
        config: FisherPruningConfig,
        data: CalibrationData,
        lengths: int | Lengths,
        batches: Sequence[Batch] | None = None,
    ) -> FisherStatistics:
        """Of a model as it is.

        Args:
            model: dense, or with cuts in it.
            anatomy: of the dense model, with the blocks that are wanted; nothing may be cut in these.
            config, data: as for a strategy.
            lengths: from `data_lengths`.
            batches: this process's first batches from `data`, where not all of them are wanted.
        """
        if config.scores == "blended":
            _check_no_experts(anatomy)
        gradients = GradientStatistics()
        labels: Labels = "data"
        if config.needs_gradients:
            asked = "data" if config.needs_labels else config.labels
            labels = cast(Labels, asked or data.agree(lambda: whose_labels(model, data)))
            outputs = config.scores == "after_refit"
            gradients = GradientStatistics.collect(
                model, anatomy, data, labels, keep_rows=config.rearranges, outputs=outputs, batches=batches
            )
        candidates = score_candidates(model, anatomy, config, gradients, data, batches)
        return cls(candidates, lengths, gradients.rows if config.rearranges else {}, labels)


def score_candidates(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: FisherPruningConfig,
    statistics: GradientStatistics,
    data: CalibrationData,
    batches: Sequence[Batch] | None = None,
) -> tuple[dict[str, torch.Tensor], ...]:
    """The scores that `config` names, by block key, the same on every process; several where a trial has to choose.

    What they take from hidden states comes from `batches`, by default from `refit_examples` of the data.
    """
    if config.scores == "magnitude":
        return (_by_key(anatomy, magnitude_scores(model, anatomy.blocks)),)
    rows = statistics.rows
    seen = data.take(config.refit_examples) if batches is None else batches
    if config.scores == "gradient":
        return ({key: data.sum(row.absolute_sum.clone()) for key, row in rows.items()},)
    fisher = {key: data.sum(row.square_sum.clone()) for key, row in rows.items()}
    if config.scores == "after_refit":
        return (fisher | _scores_after_refit(model, anatomy, statistics, data, seen),)
    if config.scores == "blended":
        energies = _energies(model, anatomy, data, seen)
        shares = BLENDS if config.blend is None else (config.blend,)
        return tuple(blend_scores(fisher, energies, share) for share in shares)
    return (fisher,)


def _scores_after_refit(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    statistics: GradientStatistics,
    data: CalibrationData,
    batches: Iterable[Batch],
) -> dict[str, torch.Tensor]:
    """Of every block that can be refitted; other scores are on the same scale, both being Fisher information."""
    with tqdm(total=len(anatomy.blocks), desc="Removal curves", unit="block") as bar:
        information = statistics.output_information
        curves = removal_curves(model, anatomy, data, batches, information, progress=lambda key: bar.update())
    return data.broadcast({key: curve.scores().cpu() for key, curve in curves.items()})


def _energies(
    model: PreTrainedModel, anatomy: ModelAnatomy, data: CalibrationData, batches: Iterable[Batch]
) -> dict[str, torch.Tensor]:
    """What each unit contributes to its block's output; zero in blocks that do not run on this data."""
    with tqdm(total=len(anatomy.blocks), desc="Contributions", unit="block") as bar:
        found = contributed_energies(model, anatomy, data, batches, progress=lambda key: bar.update())
    nothing = [torch.zeros(block.units, dtype=torch.float64, device=device_of(model)) for block in anatomy.blocks]
    return _by_key(anatomy, nothing) | found


def _check_no_experts(anatomy: ModelAnatomy) -> None:
    experts = [block.key for block in anatomy.blocks if block.output.expert is not None]
    if experts:
        raise PruningError(
            "importance='blended' needs what every unit contributes to its block's output, which is not measured for"
            f" experts ({experts[0]}). Use importance='fisher' or 'after_refit'."
        )


def _by_key(anatomy: ModelAnatomy, scores: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {block.key: score for block, score in zip(anatomy.blocks, scores, strict=True)}
