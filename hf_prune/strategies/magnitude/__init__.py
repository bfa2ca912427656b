"""Magnitude pruning, after Gordon et al. (2020)."""

from ...config import register_strategy
from .config import MagnitudePruningConfig
from .strategy import prune_by_magnitude, train_by_magnitude

__all__ = ["MagnitudePruningConfig", "prune_by_magnitude", "train_by_magnitude"]

register_strategy(MagnitudePruningConfig, prune_by_magnitude, training=train_by_magnitude)
