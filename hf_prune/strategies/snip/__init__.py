"""SNIP: spectral-normalised identity priors (Lin et al. 2020)."""

from ...config import register_strategy
from .config import SnipPruningConfig
from .strategy import SnipPruner

__all__ = ["SnipPruner", "SnipPruningConfig"]

register_strategy(SnipPruningConfig, training=SnipPruner)
