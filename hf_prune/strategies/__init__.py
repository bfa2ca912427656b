"""The strategies: one folder per method, each composing the rooms to its left."""

from .fisher import FisherPruningConfig
from .random import RandomPruningConfig

__all__ = ["FisherPruningConfig", "RandomPruningConfig"]
