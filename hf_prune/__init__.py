"""Structural pruning for Hugging Face Transformers: smaller, faster, ordinary checkpoints.

Importing this package lets every `from_pretrained` and `from_config` of transformers build pruned models.
"""

from .anatomy import describe_model
from .api import prune_model
from .budget import count_flops, measure_latency
from .config import AutoPruningConfig, PruningConfig, register_strategy
from .errors import InfeasibleBudgetError, PruningError, UnsupportedModelError
from .gates import FilterGateMixin, HeadGateMixin
from .report.result import PruningResult
from .strategies import FisherPruningConfig, RandomPruningConfig
from .surgery import install_build_hook

__version__ = "0.1.0"

__all__ = [
    "AutoPruningConfig",
    "FilterGateMixin",
    "FisherPruningConfig",
    "HeadGateMixin",
    "InfeasibleBudgetError",
    "PruningConfig",
    "PruningError",
    "PruningResult",
    "RandomPruningConfig",
    "UnsupportedModelError",
    "count_flops",
    "describe_model",
    "measure_latency",
    "prune_model",
    "register_strategy",
]

install_build_hook()
