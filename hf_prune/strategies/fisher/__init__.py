"""Fast post-training pruning (Kwon et al. 2022)."""

from ...config import register_strategy
from .config import FisherPruningConfig
from .strategy import prune_by_fisher

__all__ = ["FisherPruningConfig", "prune_by_fisher"]

register_strategy(FisherPruningConfig, prune_by_fisher)
