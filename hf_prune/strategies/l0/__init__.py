"""L0 regularisation of heads and filters, after Louizos et al. (2018), Voita et al. (2019) and Wang et al. (2020)."""

from ...config import register_strategy
from .config import L0PruningConfig
from .strategy import L0Pruner

__all__ = ["L0Pruner", "L0PruningConfig"]

register_strategy(L0PruningConfig, training=L0Pruner)
