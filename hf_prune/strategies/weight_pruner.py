"""Pruning of single weights: scores, a schedule and a rule make masks, in training or at one go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..anatomy import WeightMatrix
from ..budget import masks_above, masks_by_matrix, masks_over_all, pattern_mask
from ..errors import PruningError
from ..gates import WeightMasks
from ..report.result import PruningResult
from ..scores import PruningSchedule, WeightScores
from ..shards import is_sharded
from ..weight_config import WeightPruningConfig
from .scheduled_masks import ScheduledMaskPruner
from .training import schedule_of


class WeightPruner(ScheduledMaskPruner):
    """Masks by sparsity, by a pattern or, in soft movement pruning, by a threshold that follows the schedule."""

    takes_shards = True

    def __init__(
        self, model: Any, config: WeightPruningConfig, steps: int, matrices: list[WeightMatrix], scores: WeightScores
    ) -> None:
        _check_pattern(config, matrices)
        self._threshold: float | None = getattr(config, "threshold", None)
        schedule: PruningSchedule = (
            schedule_of(config, steps, config.initial_sparsity, config.sparsity or 0.0)
            if self._threshold is None
            else schedule_of(config, steps, 0.0, self._threshold)
        )
        super().__init__(model, config, steps, WeightMasks(matrices, scores.watch), scores, schedule)
        self._deleted = False

    def after_step(self) -> None:
        """Keeps removed weights at zero, lets scores learn, and chooses anew when it is time."""
        if not self._deleted:
            super().after_step()

    @property
    def _penalty(self) -> float:
        """The regulariser's factor grows with the threshold (soft movement pruning)."""
        if self._threshold is None:
            return 0.0
        return float(self.config.regularization) * self.schedule.value(self.step) / self._threshold

    def _update(self) -> None:
        super()._update()
        if self.config.after == "delete" and self.reached:
            self.masks.delete()
            self._deleted = True

    def _chosen(self, scores: list[torch.Tensor], value: float) -> list[torch.Tensor]:
        shards = self.masks.shards
        if self._threshold is not None:
            return masks_above([score.sigmoid() for score in scores], value, shards)
        if self.config.pattern is not None:
            group = self.config.pattern_sizes[1]
            keep = group - round(group * value)
            pairs = zip(scores, self.masks.matrices, strict=True)
            return [pattern_mask(score, keep, group, matrix.input_axis, shards) for score, matrix in pairs]
        if self.config.scope == "global":
            return masks_over_all(scores, value, shards)
        return masks_by_matrix(scores, value, shards)

    def state(self) -> dict[str, torch.Tensor]:
        """The removed weights, and what the scores have learnt."""
        return super().state() | ({"deleted": torch.tensor(True)} if self._deleted else {})

    def load_state(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Goes on where `state` was taken."""
        super().load_state(tensors, step)
        self._deleted = "deleted" in tensors

    def finish(self) -> PruningResult:
        """A model with zeros and without masks."""
        if self._deleted:  # what has not learnt again counts as removed
            self.masks.set([matrix.values != 0 for matrix in self.masks.matrices])
        return super().finish()


def _check_pattern(config: WeightPruningConfig, matrices: list[WeightMatrix]) -> None:
    """An N:M pattern must fit every matrix, before any is touched."""
    if config.pattern is None:
        return
    group = config.pattern_sizes[1]
    for matrix in matrices:
        if matrix.input_axis == 0 and is_sharded(matrix.parameter):
            raise PruningError(
                f"{matrix.name} has an output's weights in a column, and FSDP2 gives every process some rows: groups of"
                f" pattern={config.pattern!r} would be torn. Use sparsity= instead, or train with DDP."
            )
        size = matrix.parameter.shape[matrix.input_axis]
        if size % group:
            raise PruningError(
                f"{matrix.name} has {size} inputs, which pattern={config.pattern!r} cannot divide into groups of"
                f" {group}. Leave it out with exclude_modules=[{matrix.kind!r}]."
            )
