"""The strategies: one folder per method, each composing the rooms to its left."""

from .fisher import FisherPruningConfig
from .head_importance import HeadImportancePruningConfig
from .hold import HoldPruningConfig
from .l0 import L0PruningConfig
from .layer_drop import LayerDropPruningConfig
from .magnitude import MagnitudePruningConfig
from .movement import MovementPruningConfig
from .random import RandomPruningConfig
from .single_shot import (
    MetaPruner,
    MetaPrunerConfig,
    MetaTrainingArguments,
    SingleShotPruningConfig,
    train_meta_pruner,
)
from .snip import SnipPruningConfig
from .static_mask import StaticPruningConfig

__all__ = [
    "FisherPruningConfig",
    "HeadImportancePruningConfig",
    "HoldPruningConfig",
    "L0PruningConfig",
    "LayerDropPruningConfig",
    "MagnitudePruningConfig",
    "MetaPruner",
    "MetaPrunerConfig",
    "MetaTrainingArguments",
    "MovementPruningConfig",
    "RandomPruningConfig",
    "SingleShotPruningConfig",
    "SnipPruningConfig",
    "StaticPruningConfig",
    "train_meta_pruner",
]
