"""Heads and filters that go by scores and a schedule while a model is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ..anatomy import ModelAnatomy, describe_model, inner_model
from ..budget import select_units
from ..budget.targets import in_wanted_units
from ..config import StructuredPruningConfig
from ..errors import PruningError
from .masked_units import MaskedUnitsPruner
from .training import schedule_of

UnitScores = Callable[[Any, ModelAnatomy], list[torch.Tensor]]


class UnitPruner(MaskedUnitsPruner):
    """Heads and filters that go when the budget's schedule says so, and may come back until training ends."""

    def __init__(self, model: Any, config: Any, steps: int, scores: UnitScores) -> None:
        keyword, value = config.budget
        if keyword not in ("flops", "params"):
            raise PruningError(
                f"{keyword}={value} is measured on a model at rest: while it is trained use flops= or params=, or prune"
                " it with prune_model before or afterwards."
            )
        self.scores = scores
        self.schedule = schedule_of(config, steps, 1.0, value)
        super().__init__(model, config, steps, in_wanted_units(describe_model(inner_model(model)), config))
        try:
            self._select(value)  # a budget out of reach shows before training begins
        except BaseException:
            self.masks.remove()
            raise

    def begin(self) -> None:
        """Masks before the first step what the schedule says."""
        if self.schedule.due(0):
            self._update()

    def after_step(self) -> None:
        """Keeps the units off that are off, and chooses anew when it is time."""
        self.masks.apply()
        if self._is_due(self.schedule):
            self._update()

    def _update(self) -> None:
        value = self.schedule.value(self.step)
        if value < 1:
            self.put(self._select(value))

    def _select(self, value: float) -> list[torch.Tensor]:
        with self.masks.lifted():
            found = self.scores(self.inner, self.anatomy)
        scores = {block.key: score for block, score in zip(self.anatomy.blocks, found, strict=True)}
        budget: StructuredPruningConfig = replace(self.config, **{self.config.budget[0]: value})
        selection = select_units(self.inner, self.anatomy, scores, budget, self.data, self.lengths)
        return [selection.masks[block.key] for block in self.anatomy.blocks]

    @property
    def reached(self) -> bool:
        """Whether the schedule has come to its end."""
        return self.schedule.reached(self.step)
