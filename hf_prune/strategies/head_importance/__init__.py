"""Pruning of heads by the gradients of their gates, after Michel et al. (2019)."""

from ...config import register_strategy
from .config import HeadImportancePruningConfig
from .strategy import prune_by_head_importance

__all__ = ["HeadImportancePruningConfig", "prune_by_head_importance"]

register_strategy(HeadImportancePruningConfig, prune_by_head_importance)
