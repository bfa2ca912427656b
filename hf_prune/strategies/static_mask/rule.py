"""Which weights stay and how scores learn in Static Model Pruning, wherever the masks are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...budget import allocate_by_score, masks_by_matrix, masks_over, masks_over_all
from ...gates import MatrixMasks
from ...scores import MovementScores, cubic_sparsity
from ..scheduled_masks import ScheduledMaskPruner
from ..training import schedule_of
from .config import StaticPruningConfig


class StaticMaskPruner(ScheduledMaskPruner):
    """Masks that learn while the weights below them do not."""

    def __init__(
        self, model: Any, config: StaticPruningConfig, steps: int, masks: MatrixMasks, scores: MovementScores
    ) -> None:
        schedule = schedule_of(config, steps, 0.0, config.sparsity or 0.0, config.power)
        super().__init__(model, config, steps, masks, scores, schedule)

    @property
    def _penalty(self) -> float:
        """λ · (1 − (1 − t / T)³) over the whole training."""
        return cubic_sparsity(self.step, 0, self.steps, 0.0, float(self.config.regularization))

    def _chosen(self, scores: list[torch.Tensor], value: float) -> list[torch.Tensor]:
        config: StaticPruningConfig = self.config
        if config.masking == "local":
            return masks_by_matrix(scores, value)
        if config.masking == "global":
            return masks_over_all(scores, value)
        kinds = [matrix.kind for matrix in self.masks.matrices]
        return masks_by_kind(scores, kinds, value, config.score_temperature)


def masks_by_kind(
    scores: Sequence[torch.Tensor], kinds: Sequence[str], sparsity: float, temperature: float = 1.0
) -> list[torch.Tensor]:
    """In every kind of matrix the same fraction is removed, shared between the layers by their mean scores (Eq. 4).

    Args:
        scores: one tensor per matrix, of any shape.
        kinds: what each matrix is in its layer; those of one kind share.
        sparsity: fraction to remove of every kind, exactly.
        temperature: the larger, the more alike the layers.

    Returns:
        One bool mask per matrix, True where a weight stays: its highest scores.
    """
    masks: dict[int, torch.Tensor] = {}
    for kind in dict.fromkeys(kinds):
        places = [index for index, name in enumerate(kinds) if name == kind]
        levels = allocate_by_score([scores[index] for index in places], 1 - sparsity, temperature)
        for index, level in zip(places, levels, strict=True):
            keep = round(level * scores[index].numel())
            masks[index] = masks_over([scores[index]], keep)[0]
    return [masks[index] for index in range(len(scores))]
