"""Pruning at random: the baseline that every other strategy has to beat."""

from ...config import register_strategy
from .config import RandomPruningConfig
from .strategy import prune_at_random, train_at_random

__all__ = ["RandomPruningConfig", "prune_at_random", "train_at_random"]

register_strategy(RandomPruningConfig, prune_at_random, training=train_at_random)
