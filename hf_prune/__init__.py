"""Pruning for Hugging Face Transformers: smaller, faster, ordinary checkpoints.

Importing this package lets every `from_pretrained` and `from_config` of transformers build pruned models.
"""

from .adapters import StaticMaskConfig
from .anatomy import describe_model
from .api import prune_model
from .budget import count_flops, measure_latency
from .callback import PruningCallback
from .config import AutoPruningConfig, PruningConfig, register_strategy
from .errors import InfeasibleBudgetError, PruningError, UnsupportedModelError
from .gates import BinaryMaskMixin, EpsilonGateMixin, FilterGateMixin, HeadGateMixin, SpectralNormMixin
from .recover import recover
from .report.result import PruningResult
from .strategies import (
    FisherPruningConfig,
    HeadImportancePruningConfig,
    HoldPruningConfig,
    L0PruningConfig,
    LayerDropPruningConfig,
    MagnitudePruningConfig,
    MetaPruner,
    MetaPrunerConfig,
    MetaTrainingArguments,
    MovementPruningConfig,
    RandomPruningConfig,
    SingleShotPruningConfig,
    SnipPruningConfig,
    StaticPruningConfig,
    train_meta_pruner,
)
from .surgery import install_bitmask_hook, install_build_hook
from .sweep import Sweep, sweep
from .training import resume_pruning, save_pruning, start_pruning

__version__ = "0.1.0"

__all__ = [
    "AutoPruningConfig",
    "BinaryMaskMixin",
    "EpsilonGateMixin",
    "FilterGateMixin",
    "FisherPruningConfig",
    "HeadGateMixin",
    "HeadImportancePruningConfig",
    "HoldPruningConfig",
    "InfeasibleBudgetError",
    "L0PruningConfig",
    "LayerDropPruningConfig",
    "MagnitudePruningConfig",
    "MetaPruner",
    "MetaPrunerConfig",
    "MetaTrainingArguments",
    "MovementPruningConfig",
    "PruningCallback",
    "PruningConfig",
    "PruningError",
    "PruningResult",
    "RandomPruningConfig",
    "SingleShotPruningConfig",
    "SnipPruningConfig",
    "SpectralNormMixin",
    "StaticMaskConfig",
    "StaticPruningConfig",
    "Sweep",
    "UnsupportedModelError",
    "count_flops",
    "describe_model",
    "measure_latency",
    "prune_model",
    "recover",
    "register_strategy",
    "resume_pruning",
    "save_pruning",
    "start_pruning",
    "sweep",
    "train_meta_pruner",
]

install_build_hook()
install_bitmask_hook()
