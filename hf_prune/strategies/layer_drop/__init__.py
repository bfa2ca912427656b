"""Removal of whole layers, after Sajjad et al. (2023)."""

from ...config import register_strategy
from .config import LayerDropPruningConfig
from .strategy import prune_layers

__all__ = ["LayerDropPruningConfig", "prune_layers"]

register_strategy(LayerDropPruningConfig, prune_layers)
