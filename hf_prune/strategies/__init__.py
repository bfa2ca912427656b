"""The strategies: one folder per method, each composing the rooms to its left."""

from .fisher import FisherPruningConfig
from .hold import HoldPruningConfig
from .magnitude import MagnitudePruningConfig
from .movement import MovementPruningConfig
from .random import RandomPruningConfig
from .static_mask import StaticPruningConfig

__all__ = [
    "FisherPruningConfig",
    "HoldPruningConfig",
    "MagnitudePruningConfig",
    "MovementPruningConfig",
    "RandomPruningConfig",
    "StaticPruningConfig",
]
