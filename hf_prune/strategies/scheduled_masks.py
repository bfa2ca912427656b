"""What strategies share whose masks follow a schedule: scores, a rule that makes masks of them, and when."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch

from ..anatomy import UndoLog
from ..gates import MatrixMasks
from ..report.result import PruningResult
from ..scores import PruningSchedule, WeightScores
from ..surgery.own_configs import give_own_configs
from ..surgery.weight_metadata import write_weight_metadata
from .mask_pruner import MaskPruner


class ScheduledMaskPruner(MaskPruner):
    """Masks on single weights that follow a schedule.

    Attributes:
        scores: where the weights' scores come from.
        schedule: the sparsity, or whatever else the rule takes, by step.
    """

    def __init__(
        self,
        model: Any,
        config: Any,
        steps: int,
        masks: MatrixMasks,
        scores: WeightScores,
        schedule: PruningSchedule,
    ) -> None:
        super().__init__(model, config, steps, masks)
        self.scores, self.schedule = scores, schedule
        self._configs: UndoLog | None = None

    def begin(self) -> None:
        """Prunes before the first step what the schedule says."""
        self._own_configs()
        if self.schedule.due(0):
            self._update()
        self._note()

    def after_step(self) -> None:
        """Keeps removed weights at zero, lets scores learn, and chooses anew when it is time."""
        self.masks.apply()
        self.scores.learn(self.masks, max(0.0, 1 - self.step / max(self.steps, 1)), self._penalty)
        if self._is_due(self.schedule):
            self._update()
            self._note()

    @property
    def _penalty(self) -> float:
        """The factor of the scores' regulariser."""
        return 0.0

    def _update(self) -> None:
        self.masks.set(self._chosen(self.scores.scores(self.masks), self.schedule.value(self.step)))

    @abstractmethod
    def _chosen(self, scores: list[torch.Tensor], value: float) -> list[torch.Tensor]:
        """The masks that scores and the schedule's value give."""

    def take_scaler(self, scaler: Any) -> None:
        """For scores that learn from gradients."""
        if hasattr(self.scores, "scaler"):
            self.scores.scaler = scaler

    @property
    def reached(self) -> bool:
        """Whether the schedule has come to its end."""
        return self.schedule.reached(self.step)

    def _own_configs(self) -> None:
        """A model that was built from the same config object is not to notice."""
        if self._configs is None:
            self._configs = UndoLog()
            give_own_configs(self.inner, self._configs)

    def _note(self) -> None:
        """Writes into the model's config what holds now, so that every checkpoint says what it is."""
        write_weight_metadata(self.inner.config, self.config.to_dict(), self.masks)

    def abandon(self, *, restore: bool = True) -> None:
        """The raw weights; with `restore` the configs say nothing of masks any more."""
        super().abandon(restore=restore)
        if restore and self._configs is not None:
            self._configs.roll_back()
            self._configs = None

    def state(self) -> dict[str, torch.Tensor]:
        """The removed weights, and what the scores have learnt."""
        return super().state() | self.scores.state()

    def load_state(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Goes on where `state` was taken."""
        self._own_configs()
        super().load_state(tensors, step)
        self.scores.load_state(tensors)
        self._note()

    def finish(self) -> PruningResult:
        """A model with zeros and without masks."""
        self._note()
        return super().finish()
