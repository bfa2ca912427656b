"""Settings of movement pruning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ...errors import PruningError
from ...setting_checks import check_not_negative, check_unused, is_number
from ...weight_config import WeightPruningConfig


@dataclass
class MovementPruningConfig(WeightPruningConfig):
    """Movement pruning (Sanh et al. 2020): every weight has a score that learns, with the weights, what to remove.

    With `sparsity` the lowest scores go; with `threshold` every weight whose score's sigmoid is below it (soft
    movement pruning), and a penalty on the scores decides how many these are. Projections in the layers are pruned,
    embeddings and poolers only if `target_modules` names them.
    """

    strategy: ClassVar[str] = "movement"
    IN_TRAINING: ClassVar[tuple[str, ...]] = (
        *WeightPruningConfig.IN_TRAINING,
        "regularization",
        "score_learning_rate",
    )

    frequency: int = field(default=1, metadata={"help": "Optimizer steps between two choices of what is removed."})
    threshold: float | None = field(
        default=None, metadata={"help": "Soft movement: weights whose score's sigmoid is below this go, 0 to 1."}
    )
    regularization: float = field(
        default=100.0,
        metadata={
            "help": "Soft movement: factor of the scores' mean sigmoid in the loss; grows with the threshold.",
        },
    )
    score_learning_rate: float = field(default=1e-2, metadata={"help": "Of the scores; falls linearly to zero."})
    batch_size: int = field(default=32, metadata={"help": "Calibration examples per batch, where data comes as rows."})

    def __post_init__(self) -> None:
        if self.threshold is not None:
            where = "with threshold=, which compares every score with a number: use it with sparsity="
            check_unused(self, where, "pattern", "initial_sparsity", "scope")
        super().__post_init__()
        if (self.sparsity is None) == (self.threshold is None):
            raise PruningError(
                f"MovementPruningConfig needs exactly one of sparsity and threshold; got sparsity={self.sparsity},"
                f" threshold={self.threshold}."
            )
        if self.threshold is not None and not (is_number(self.threshold) and 0 < self.threshold < 1):
            raise PruningError(f"threshold={self.threshold!r} must lie in (0, 1): it is compared with a sigmoid.")
        check_not_negative(self, "regularization", "score_learning_rate")
        if self.threshold is None:
            check_unused(self, "without threshold=, which it belongs to", "regularization")

    @property
    def prunes_weights(self) -> bool:
        """Always: the scores are those of single weights."""
        return True
