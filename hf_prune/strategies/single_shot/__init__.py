"""Single-shot meta-pruning of heads before fine-tuning (Zhang et al. 2020)."""

from ...config import register_strategy
from .attention_maps import attention_maps
from .config import SingleShotPruningConfig
from .meta_arguments import MetaTrainingArguments
from .meta_pruner import MetaPruner, MetaPrunerConfig
from .meta_training import train_meta_pruner
from .strategy import prune_by_attention

__all__ = [
    "MetaPruner",
    "MetaPrunerConfig",
    "MetaTrainingArguments",
    "SingleShotPruningConfig",
    "attention_maps",
    "prune_by_attention",
    "train_meta_pruner",
]

register_strategy(SingleShotPruningConfig, prune_by_attention)
