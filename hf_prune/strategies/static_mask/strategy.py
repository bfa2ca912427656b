"""Static Model Pruning in place: the masked weights are the model's own (Jiang et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...errors import PruningError
from ...gates import WeightMasks
from ...report.result import PruningResult
from ...scores import MovementScores
from ..mask_pruner import chosen
from .config import StaticPruningConfig
from .freezing import Stillness, freeze_before_optimizer
from .rule import StaticMaskPruner


class StaticPruner(StaticMaskPruner):
    """Masks on the weights themselves: every checkpoint is an ordinary one, and kept weights never change."""

    def __init__(self, model: Any, config: StaticPruningConfig, steps: int) -> None:
        matrices = chosen(model, config, only_layers=True)
        scores = MovementScores(matrices, config.score_learning_rate, frozen=True)
        self._still = Stillness(model, (matrix.parameter for matrix in matrices))
        try:
            masks = WeightMasks(matrices, scores.watch)
        except BaseException:
            self._still.end()
            raise
        super().__init__(model, config, steps, masks, scores)
        scores.attach(masks)

    def before_step(self) -> None:
        """The optimizer gets no gradient of a frozen weight, so it does not decay it either."""
        self._still.drop_gradients()

    def finish(self) -> PruningResult:
        """A model with zeros, of which everything learns again that did before."""
        result = super().finish()
        self._still.end()
        return result

    def abandon(self, *, restore: bool = True) -> None:
        """The weights as they were."""
        super().abandon(restore=restore)
        self._still.end()


class _StaticMaskTraining:
    """Makes the pruner for a model: in place, or on the adapter of a PEFT model that has one for static masks."""

    def __call__(self, model: Any, config: StaticPruningConfig, steps: int) -> StaticMaskPruner:
        make = getattr(model, "static_mask_pruner", None)
        if make is None:
            return StaticPruner(model, config, steps)
        own = model.static_mask_pruning_config()
        if config.to_dict() != own.to_dict():
            raise PruningError(
                "The model has an adapter for static masks, whose own settings hold: use PruningCallback() without a"
                " configuration, or take the StaticMaskConfig's pruning_config()."
            )
        pruner: StaticMaskPruner = make(model, config, steps)
        return pruner

    def prepare(self, model: Any, config: StaticPruningConfig) -> Callable[[], None] | None:
        """Freezes what does not learn, before an optimizer or DDP is made.

        Returns:
            What undoes it; None where there is nothing to freeze.
        """
        if hasattr(model, "static_mask_pruner"):
            return None
        matrices = chosen(model, config, only_layers=True)
        return freeze_before_optimizer(model, [matrix.parameter for matrix in matrices])


static_mask_training = _StaticMaskTraining()
