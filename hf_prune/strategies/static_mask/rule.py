"""Which weights stay and how scores learn in Static Model Pruning, wherever the masks are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch

from ...budget import allocate_by_score, count_weights, masks_by_matrix, masks_over, masks_over_all
from ...gates import MatrixMasks
from ...scores import MovementScores, cubic_sparsity
from ...shards import WHOLE, Shards
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
        shards = self.masks.shards
        # One matrix's ranks in memory at a time, where that does.
        ranks = (self._ranks(index, score) for index, score in enumerate(scores))
        if config.masking == "local":
            return masks_by_matrix(ranks, value, shards)
        if config.masking == "global":
            return masks_over_all(list(ranks), value, shards)
        kinds = [matrix.kind for matrix in self.masks.matrices]
        return masks_by_kind(scores, kinds, value, config.score_temperature, self._ranks, shards)

    def _ranks(self, index: int, score: torch.Tensor) -> torch.Tensor:
        """By what a matrix's weights are ordered: their scores, and before these have learnt much their magnitudes."""
        prior = self.config.magnitude_prior
        return with_magnitude(score, self.masks.raw(index), prior, self._deviations[index]) if prior else score

    @cached_property
    def _deviations(self) -> list[float]:
        """σ(W) of every matrix, computed once because the weights are frozen."""
        raw, shards = self.masks.raw, self.masks.shards
        return [deviation_of(raw(index), shards) for index in range(len(self.masks.matrices))]


def deviation_of(weight: torch.Tensor, shards: Shards = WHOLE) -> float:
    """σ(W), the standard deviation of a matrix's weights, a little above 0 where they are all alike.

    Args:
        weight: W, or the rows of it that this process holds.
        shards: the processes that hold the others.
    """
    values = weight.detach().float()
    if not shards.several:
        return float(values.std().clamp_min(1e-12))
    total, count = shards.add_up(torch.stack([values.sum(), torch.ones_like(values).sum()])).double().tolist()
    squares = shards.add_up((values - total / count).square().sum())
    return max(float(squares / (count - 1)) ** 0.5, 1e-12)


def with_magnitude(scores: torch.Tensor, weight: torch.Tensor, prior: float, deviation: float) -> torch.Tensor:
    """S + prior · |W| / σ(W): ranks weights by magnitude until scores tell them apart.

    From scores of 0 the first ranking is arbitrary, and the next ones move a large part of the mask by the gradients of
    a few batches; with a prior the first weights to go, and to be exchanged, are small ones.

    Args:
        scores: S, float32.
        weight: W, of the same shape, in any floating-point type.
        prior: how many units of score one standard deviation of the weights is worth.
        deviation: σ(W), from `deviation_of`.
    """
    return torch.add(scores, weight.detach().float().abs(), alpha=prior / deviation)


def masks_by_kind(
    scores: Sequence[torch.Tensor],
    kinds: Sequence[str],
    sparsity: float,
    temperature: float = 1.0,
    ranks: Callable[[int, torch.Tensor], torch.Tensor] = lambda index, score: score,
    shards: Shards = WHOLE,
) -> list[torch.Tensor]:
    """In every kind of matrix the same fraction is removed, shared between the layers by their mean scores (Eq. 4).

    Args:
        scores: one tensor per matrix, of any shape.
        kinds: what each matrix is in its layer; those of one kind share.
        sparsity: fraction to remove of every kind, exactly.
        temperature: the larger, the more alike the layers.
        ranks: by what the weights of a matrix are ordered, given its place and its scores; by default the scores.
        shards: the processes that share the matrices.

    Returns:
        One bool mask per matrix, True where a weight stays: its highest ranks.
    """
    masks: dict[int, torch.Tensor] = {}
    for kind in dict.fromkeys(kinds):
        places = [index for index, name in enumerate(kinds) if name == kind]
        levels = allocate_by_score([scores[index] for index in places], 1 - sparsity, temperature, shards)
        for index, level in zip(places, levels, strict=True):
            keep = round(level * count_weights([scores[index]], shards))
            masks[index] = masks_over([ranks(index, scores[index])], keep, shards)[0]
    return [masks[index] for index in range(len(scores))]
