"""Settings of pruning at random."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ...config import StructuredPruningConfig
from ...count_budgets import HeadBudgetConfig, LayerBudgetConfig
from ...errors import PruningError
from ...weight_config import WeightPruningConfig


@dataclass
class RandomPruningConfig(WeightPruningConfig, StructuredPruningConfig, HeadBudgetConfig, LayerBudgetConfig):
    """Removes heads and filters, whole layers or single weights at random, and repairs nothing.

    A baseline, and a way to try a budget's sizes and speed before any data is at hand: without calibration data,
    costs are counted for `sequence_length` tokens (by default 128, or as many as the model has positions for). The
    budget says what goes: with `heads` every layer loses the same fraction of its heads, with `layers` whole layers go,
    with `sparsity` single weights.
    """

    strategy: ClassVar[str] = "random"
    needs_data: ClassVar[bool] = False
    BUDGETS: ClassVar[tuple[str, ...]] = (*StructuredPruningConfig.BUDGETS, "heads", "layers", "sparsity")

    seed: int = field(default=0, metadata={"help": "Of the random scores: the same seed removes the same units."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise PruningError(f"seed={self.seed!r} must be a whole number of at least 0.")
