"""Static Model Pruning in place: the masked weights are the model's own (Jiang et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...anatomy import inner_model
from ...errors import PruningError
from ...gates import WeightMasks
from ...report.result import PruningResult
from ...scores import MovementScores
from ..mask_pruner import chosen
from .config import StaticPruningConfig
from .freezing import Stillness, freeze_before_optimizer
from .label_words import put_label_words
from .rule import StaticMaskPruner


class StaticPruner(StaticMaskPruner):
    """Masks on the weights themselves: every checkpoint is an ordinary one, and kept weights never change.

    With label words the checkpoints hold their head instead of the model's own, and need hf_prune to be loaded.
    """

    takes_shards = True
    scores: MovementScores

    def __init__(self, model: Any, config: StaticPruningConfig, steps: int) -> None:
        matrices = chosen(model, config, only_layers=True)
        scores = MovementScores(matrices, config.score_learning_rate, frozen=True)
        self._head = put_label_words(inner_model(model), config)
        self._still = Stillness(model, (matrix.parameter for matrix in matrices))
        try:
            masks = WeightMasks(matrices, scores.watch)
            self._still.drop_as_they_come()  # once the scores have seen them
        except BaseException:
            self._end(keep_head=False)
            raise
        super().__init__(model, config, steps, masks, scores)
        scores.attach(masks)

    def before_step(self) -> None:
        """The optimizer gets no gradient of a frozen weight, so it does not decay it either."""
        self._still.drop_gradients()

    def after_step(self) -> None:
        """Also lets a gradient scaler lower its factor, which saw no gradient of a frozen weight overflow."""
        super().after_step()
        if self.scores.overflowed:
            for found in self.scores.scaler._found_inf_per_device(self.followed).values():
                found.fill_(1.0)  # as if the optimizer had had these gradients

    def take_scaler(self, scaler: Any) -> None:
        """For scores; refused where nothing is left that a scaler could look at."""
        if scaler is not None and scaler.is_enabled() and self._head is not None:
            raise PruningError(
                "With label_words nothing is trained but scores, so float16's gradient scaler finds no gradients. Train"
                " with bf16=True, or without mixed precision."
            )
        super().take_scaler(scaler)

    def finish(self) -> PruningResult:
        """A model with zeros, of which everything learns again that did before."""
        result = super().finish()
        self._end(keep_head=True)
        return result

    def abandon(self, *, restore: bool = True) -> None:
        """The weights as they were."""
        super().abandon(restore=restore)
        self._end(keep_head=False)

    def _end(self, *, keep_head: bool) -> None:
        self._still.end()
        if self._head is not None:
            if keep_head:
                self._head.settle()
            else:
                self._head.remove()


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
        """Freezes what does not learn, before an optimizer or DDP is made or a checkpoint is loaded.

        With label words their head is put in place; that stays, since it is the pruner's to take off.

        Returns:
            What undoes it; None where there is nothing to freeze.
        """
        if hasattr(model, "static_mask_pruner"):
            return None
        matrices = chosen(model, config, only_layers=True)
        put_label_words(inner_model(model), config)
        return freeze_before_optimizer(model, [matrix.parameter for matrix in matrices])


static_mask_training = _StaticMaskTraining()
