"""Training with zeros held."""

from ...config import register_strategy
from ..weight_pruner import ZeroHolder
from .config import HoldPruningConfig

__all__ = ["HoldPruningConfig"]

register_strategy(HoldPruningConfig, training=ZeroHolder)
