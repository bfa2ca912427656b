"""Training with zeros held."""

from ...config import register_strategy
from .config import HoldPruningConfig
from .strategy import ZeroHolder

__all__ = ["HoldPruningConfig", "ZeroHolder"]

register_strategy(HoldPruningConfig, training=ZeroHolder)
