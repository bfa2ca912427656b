"""Movement pruning (Sanh et al. 2020)."""

from __future__ import annotations

from typing import Any

from ...calibration import CalibrationData
from ...errors import PruningError
from ...scores import MovementScores, evaluating
from ...scores.gradients import labels_missing
from ..mask_pruner import chosen
from ..weight_pruner import WeightPruner
from .config import MovementPruningConfig


class MovementPruner(WeightPruner):
    """A `WeightPruner` whose scores learn from gradients."""

    def __init__(self, model: Any, config: MovementPruningConfig, steps: int) -> None:
        matrices = chosen(model, config, only_layers=True)
        frozen = [matrix.name for matrix in matrices if not matrix.parameter.requires_grad]
        if frozen:
            raise PruningError(
                f"Movement pruning reads gradients, and {frozen[0]} (of {len(frozen)}) is frozen. Unfreeze it, or leave"
                " it out with exclude_modules."
            )
        self.movement = MovementScores(matrices, config.score_learning_rate)
        super().__init__(model, config, steps, matrices, self.movement)
        self.movement.attach(self.masks)

    def calibrate(self, data: CalibrationData) -> None:
        """Scores for pruning at one go: one gradient step on the scores, S = −Σ ∂L/∂W ∘ W over all batches.

        Raises:
            PruningError: the model is sharded.
        """
        if self.masks.shards.several:
            raise PruningError(
                "Movement pruning at one go does not work on a model that fully_shard (FSDP2) has sharded: prune it"
                " before it is sharded, or while it is trained."
            )
        with evaluating(self.inner):
            for batch in data:
                self.inner.zero_grad()
                loss = getattr(self.inner(**batch), "loss", None)
                if loss is None:
                    raise labels_missing(self.inner, batch)
                loss.backward()
                self.movement.add_movement()
        self.inner.zero_grad()
        self.movement.agree()


def train_by_movement(model: Any, config: MovementPruningConfig, steps: int) -> MovementPruner:
    """Removes the weights that training moves towards zero."""
    return MovementPruner(model, config, steps)
