"""The strategies: one folder per method, each composing the rooms to its left."""

from .fisher import FisherPruningConfig

__all__ = ["FisherPruningConfig"]
