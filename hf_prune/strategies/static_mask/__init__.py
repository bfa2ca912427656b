"""Static Model Pruning, after Jiang et al. (2023): frozen weights, and a mask that learns the task."""

from ...config import register_strategy
from .config import StaticPruningConfig
from .rule import StaticMaskPruner
from .settings import StaticMaskSettings
from .strategy import StaticPruner, static_mask_training

__all__ = [
    "StaticMaskPruner",
    "StaticMaskSettings",
    "StaticPruner",
    "StaticPruningConfig",
    "static_mask_training",
]

register_strategy(StaticPruningConfig, training=static_mask_training)
