"""Movement pruning, after Sanh et al. (2020)."""

from ...config import register_strategy
from .config import MovementPruningConfig
from .strategy import MovementPruner, train_by_movement

__all__ = ["MovementPruner", "MovementPruningConfig", "train_by_movement"]

register_strategy(MovementPruningConfig, training=train_by_movement)
